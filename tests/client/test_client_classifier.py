"""`Classifier` over a fake transport: order, bounds, errors in their place."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client import (
    AsyncClassifier,
    Classifier,
    ClassifierError,
    InvalidImageError,
    NotFiniteError,
    Prediction,
    ProtocolError,
)
from client._address import parse_address
from client._prediction import parse_predictions
from client.testing import FakeTransport


def answer(label: str) -> list[Prediction]:
    return [Prediction(label, 0, 0.75), Prediction(f"second of {label}", 1, 0.25)]


def test_answer_is_sorted_and_the_request_is_passed_on(fake: Any) -> None:
    classifier = Classifier(model="m", timeout=7, transport=fake)
    assert classifier.classify(b"cat", top=2) == answer("cat")
    assert fake.calls == [("m", b"cat", 2)]
    assert 6.9 < fake.requests[0].timeout <= 7


@pytest.mark.parametrize(
    ("entries", "predictions"),
    [
        (["0.5:7:a:b: c"], [Prediction("a:b: c", 7, 0.5)]),
        (["0.5:7"], [Prediction("7", 7, 0.5)]),
        (["0.5:7:"], [Prediction("", 7, 0.5)]),
        (
            ["0.1:1:x", "0.7:2:y", "0.1:0:z"],
            [Prediction("y", 2, 0.7), Prediction("z", 0, 0.1), Prediction("x", 1, 0.1)],
        ),
        ([], []),
    ],
)
def test_wire_form(entries: list[str], predictions: list[Prediction]) -> None:
    assert parse_predictions(entries) == predictions


@pytest.mark.parametrize("entry", ["", "0.5", "x:1:cat", "0.5:one:cat"])
def test_other_wire_forms_are_refused(entry: str) -> None:
    with pytest.raises(ProtocolError, match="value:index:label"):
        parse_predictions([entry])


@pytest.mark.parametrize("value", ["nan", "-nan", "inf"])
def test_weights_that_have_overflowed_are_told(value: str) -> None:
    with pytest.raises(NotFiniteError, match=f"'{value}:1:cat', which is no probability: check its weights"):
        parse_predictions(["0.5:0:dog", f"{value}:1:cat"])


def test_error_names_its_image(fake: Any, tmp_path: Path) -> None:
    classifier = Classifier(transport=fake)
    with pytest.raises(InvalidImageError) as caught:
        classifier.classify(tmp_path / "no.png")
    assert caught.value.image == str(tmp_path / "no.png")
    assert str(caught.value).startswith(f"{tmp_path / 'no.png'}: no such file")
    assert fake.calls == []  # nothing was sent
    with pytest.raises(ClassifierError, match=r"^<2 bytes>: refused$"):
        classifier.classify(b"!2")


def test_many_keep_their_order(fake: Any) -> None:
    fake.before = lambda image: time.sleep(0.02 if int(image) % 3 == 0 else 0)
    outcomes = Classifier(transport=fake).classify_many((str(n).encode() for n in range(40)), top=2, concurrency=4)
    assert outcomes == [answer(str(n)) for n in range(40)]


def test_errors_stay_in_place_and_cost_no_other(fake: Any) -> None:
    outcomes = Classifier(transport=fake).classify_many([b"a", b"!b", "/no/such.png", b"d"])
    assert [outcomes[0], outcomes[3]] == [answer("a"), answer("d")]
    assert str(outcomes[1]) == "<2 bytes>: refused"
    assert isinstance(outcomes[2], InvalidImageError)


def test_in_flight_is_bounded_and_reached(fake: Any) -> None:
    together = threading.Barrier(3, timeout=10)  # breaks unless three are in flight at once

    def meet(image: bytes) -> None:
        together.wait()
        time.sleep(0.05)

    fake.before = meet
    outcomes = Classifier(transport=fake).classify_many([b"x"] * 12, concurrency=3)
    assert outcomes == [answer("x")] * 12
    assert fake.most_in_flight == 3


def test_foreign_error_is_not_swallowed(fake: Any) -> None:
    def fail(image: bytes) -> None:
        raise ZeroDivisionError

    fake.before = fail
    with pytest.raises(ZeroDivisionError):
        Classifier(transport=fake).classify_many([b"a"])


@pytest.mark.parametrize(
    "one",
    [
        *("cat.jpg", b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), Path("cat.jpg")),
        *(np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8), Image.new("RGB", (5, 4))),
    ],
    ids=lambda one: type(one).__name__,
)
def test_one_image_is_not_many(fake: Any, one: Any) -> None:
    with pytest.raises(TypeError, match="is one image: use classify"):
        Classifier(transport=fake).classify_many(one)
    assert fake.calls == []


def test_retries_changed_later_are_checked(fake: Any) -> None:
    classifier = Classifier(transport=fake)
    classifier.retries = -1
    with pytest.raises(ValueError, match="retries is -1: give a whole number, 0 or more"):
        classifier.classify(b"x")
    assert fake.calls == []


def test_an_array_of_four_dimensions_is_many_images() -> None:
    transport = FakeTransport([("cat", 0, 0.75)])
    outcomes = Classifier(transport=transport).classify_many(np.zeros((2, 4, 5, 3), np.uint8))
    assert outcomes == [[Prediction("cat", 0, 0.75)]] * len(transport.requests)
    assert len(transport.requests) == 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.classify(b"x", top=0), "top is 0"),
        (lambda c: c.classify(b"x", top="3"), "top is '3': ask for 1 class or more"),
        (lambda c: c.classify(b"x", timeout="5"), "timeout is '5': give the seconds"),
        (lambda c: c.classify_many([b"x"], concurrency=2.5), "concurrency is 2.5: give 1 or more"),
        (lambda c: Classifier(retries="2"), "retries is '2': give a whole number, 0 or more"),
        (lambda c: Classifier(timeout=None), "timeout is None: give the seconds to wait, more than 0"),
        (lambda c: c.classify_many([b"x"], top=-1), "top is -1"),
        (lambda c: c.classify_stream([b"x"], concurrency=0), "concurrency is 0"),  # at once, not at the first next()
        (lambda c: c.classify(b"x", timeout=-1), "timeout is -1"),
        (lambda c: Classifier(retries=-1), "retries is -1"),
        (lambda c: Classifier([]), "no URL"),
        (lambda c: Classifier(transport=[]), "transport is an empty list"),
        (lambda c: AsyncClassifier(transport=()), "transport is an empty list"),
        (lambda c: Classifier(timeout=0), "timeout is 0"),
        (lambda c: Classifier(timeout=float("inf")), "timeout is inf"),
        (lambda c: Classifier(timeout=float("nan")), "timeout is nan"),
        (lambda c: Classifier(protocol="carrier pigeon"), "carrier pigeon"),
        (lambda c: Classifier(protocol=["grpc"]), r"protocol is \['grpc'\]"),
        (lambda c: Classifier(8001), "URL 8001 is not an address"),
        (lambda c: Classifier(b"box:1"), "URL b'box:1' is not an address"),
        (lambda c: Classifier(["box:1", 5]), "URL 5 is not an address"),
        (lambda c: Classifier(tls=5), "tls is 5: give a TLS"),
        (lambda c: Classifier(model=None), "model is None: give text"),
        (lambda c: AsyncClassifier(model=b"m"), "model is b'm': give text"),
        (lambda c: Classifier(model="\udcff"), "model is '.udcff': give text"),  # of a command line
        (lambda c: Classifier(timeout=1_000_001), "timeout is 1000001: .* at most 1000000"),
        (lambda c: c.classify(b"x", timeout=10**400), "timeout is 1000"),
        (lambda c: c.classify(b"x", top=2**31), "top is 2147483648: .* 2147483647 at most"),
        (lambda c: c.classify(b"x", request_id=5), "request_id is 5: give text"),
    ],
)
def test_wrong_arguments(fake: Any, call: Callable[[Classifier], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(Classifier(transport=fake))
    assert fake.calls == []


@pytest.mark.parametrize(("name", "value"), [("timeout", -1), ("model", None)])
def test_what_is_changed_to_a_wrong_value(fake: Any, name: str, value: object) -> None:
    classifier = Classifier(transport=fake)
    setattr(classifier, name, value)
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        classifier.classify(b"x")
    assert fake.calls == []


@pytest.mark.parametrize("top", [np.int32(3), True])
def test_whole_numbers_of_other_types(fake: Any, top: int) -> None:
    """JSON cannot hold NumPy's integers, and would write True as `true`."""
    Classifier(transport=fake).classify(b"x", top)
    assert type(fake.requests[0].top) is int


def test_closed_is_closed(fake: Any) -> None:
    with Classifier(transport=fake) as classifier:
        classifier.classify(b"a")
    assert fake.closed == 1
    classifier.close()
    with pytest.raises(RuntimeError, match="closed"):
        classifier.classify(b"a")
    with pytest.raises(RuntimeError, match="closed"):
        classifier.classify_stream([b"a"])


def test_closed_meanwhile_is_told_from_a_failure(fake: Any) -> None:
    classifier = Classifier(transport=fake)
    fake.before = lambda image: classifier.close()
    with pytest.raises(RuntimeError, match="closed"):
        classifier.classify(b"!a")


@pytest.mark.parametrize(
    ("url", "protocol", "expected"),
    [
        (None, "grpc", ("127.0.0.1", 8001, False, "")),
        (None, "http", ("127.0.0.1", 8000, False, "")),
        ("box", "grpc", ("box", 8001, False, "")),
        ("box:9", "http", ("box", 9, False, "")),
        ("http://box:9/", "http", ("box", 9, False, "")),
        ("grpc://box", "grpc", ("box", 8001, False, "")),
        ("[::1]:9", "grpc", ("::1", 9, False, "")),
        ("https://box", "http", ("box", 443, True, "")),
        ("grpcs://box:9", "grpc", ("box", 9, True, "")),
        ("https://box/gate/way/", "http", ("box", 443, True, "/gate/way")),
        ("box:9/v2x", "http", ("box", 9, False, "/v2x")),
    ],
)
def test_addresses(url: str | None, protocol: str, expected: tuple[str, int, bool, str]) -> None:
    assert parse_address(url, protocol) == expected


@pytest.mark.parametrize(
    ("url", "protocol", "words"),
    [
        ("", "grpc", "not an address"),
        ("ftp://box", "grpc", "is ftp, the protocol is grpc"),
        ("box:port", "http", "box:port"),
        ("box:99999", "http", "box:99999"),
        ("box:1/v2/models", "http", r"not an address; .* without tritonserver's own /v2$"),
        ("box:1/gate/v2", "http", "not an address"),
        ("box:1/gate//way", "http", "not an address"),
        ("box:1/gäte", "http", "not an address"),
        ("box:1/gate", "grpc", "not an address; .* over HTTP"),
        ("box:1?model=classifier", "http", "not an address"),
        ("box:1#top", "http", "not an address"),
        ("box:0", "grpc", "not an address"),
        ("a box:1", "http", "not an address"),
        ("\udcff:1", "grpc", "surrogates not allowed"),
        ("::1:8001", "grpc", r"or \[::1\]:8001"),
        ("user:secret@box:1", "http", "not an address"),
    ],
)
def test_addresses_that_are_none(url: str, protocol: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Classifier(url, protocol)
    assert "write host:port" in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "protocol", "spoken", "other"),
    [
        ("http", "grpc", "http", "grpc"),
        ("https", "grpc", "http", "grpcs"),
        ("grpc", "http", "grpc", "http"),
        ("grpcs", "http", "grpc", "https"),
    ],
)
def test_an_address_of_the_other_protocol_names_the_option(scheme: str, protocol: str, spoken: str, other: str) -> None:
    with pytest.raises(ValueError, match=f"is {scheme}, the protocol is {protocol}; ") as caught:
        Classifier(f"{scheme}://box", protocol)
    remedy = f"give --protocol {spoken} (in Python protocol='{spoken}'), or write {other}://"
    assert str(caught.value).endswith(remedy)
