"""The client against a real tritonserver, over both protocols."""

import asyncio
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from asking import frozen
from PIL import Image

from client import (
    AsyncClassifier,
    Classifier,
    ClassifierError,
    DeadlineExceededError,
    InferenceError,
    InvalidImageError,
    ModelNotFoundError,
    NotFiniteError,
    Prediction,
    ProtocolError,
    QueueFullError,
    ServerStatus,
    step_times,
)

pytestmark = pytest.mark.server

BEST = {"red": ("red: warm", 0), "green": ("green", 1), "blue": ("blue [cold]", 2), "grey": ("naïve grey", 3)}


@pytest.fixture(params=[False, True], ids=["messages", "shared memory"])
def classifier(
    request: pytest.FixtureRequest,
    address: str,
    protocol: str,
    tiny_server: "TritonServer",  # noqa: F821
) -> Iterator[Classifier]:
    token = tiny_server.launch.shared_memory_token if request.param else None
    with Classifier(address, protocol, timeout=20, shared_memory_token=token) as classifier:
        yield classifier


def best(predictions: list[Prediction]) -> tuple[str, int]:
    return predictions[0].label, predictions[0].index


@pytest.mark.parametrize("colour", BEST)
def test_label_index_probability(classifier: Classifier, picture: Callable[..., bytes], colour: str) -> None:
    predictions = classifier.classify(picture(colour), top=4)
    assert best(predictions) == BEST[colour]
    assert sorted(p.index for p in predictions) == [0, 1, 2, 3]
    assert sum(p.probability for p in predictions) == pytest.approx(1, abs=1e-5)
    assert predictions == sorted(predictions, key=lambda p: -p.probability)


@pytest.mark.parametrize(("top", "count"), [(1, 1), (3, 3), (100, 4)])
def test_top(classifier: Classifier, picture: Callable[..., bytes], top: int, count: int) -> None:
    assert len(classifier.classify(picture("red"), top=top)) == count


def test_both_protocols_agree(tiny_server: "TritonServer", picture: Callable[..., bytes]) -> None:  # noqa: F821
    noise = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    images = [picture("blue", kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF")] + [noise]
    with Classifier(tiny_server.grpc_url) as one, Classifier(tiny_server.http_url, "http") as other:
        answers = one.classify_many(images)
        assert answers == other.classify_many(images)
    assert all(isinstance(answer, list) for answer in answers)


def test_every_form_of_one_image_is_answered_alike(classifier: Classifier, tmp_path: Path) -> None:
    """The image has an EXIF orientation, which each form must pass on."""
    pixels = np.zeros((32, 48, 3), dtype=np.uint8)
    pixels[:, :14, 0] = pixels[:, 14:, 2] = 250
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "turned.png"
    Image.fromarray(pixels).save(file, exif=exif)
    upright = np.asarray(Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_270))
    forms = [file, str(file), file.read_bytes(), Image.open(file), upright]
    answers = classifier.classify_many(forms, top=4)
    assert answers == [answers[0]] * len(forms)
    assert best(answers[0]) == BEST["blue"]


def test_sixteen_threads_on_one_client(classifier: Classifier, picture: Callable[..., bytes]) -> None:
    images = {colour: picture(colour) for colour in BEST}
    expected = {colour: classifier.classify(image) for colour, image in images.items()}
    start = threading.Barrier(16)
    wrong: list[object] = []

    def hammer(number: int) -> int:
        start.wait()
        for turn in range(20):
            colour = list(BEST)[(number + turn) % 4]
            answer = classifier.classify(images[colour])
            if answer != expected[colour]:
                wrong.append((colour, answer))
        return 20

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(hammer, range(16))) == 320
    assert wrong == []


def test_asyncio_answers_alike(address: str, protocol: str, picture: Callable[..., bytes]) -> None:
    images = [picture(colour) for colour in BEST] * 5

    async def main() -> list:
        async with AsyncClassifier([address, address], protocol, timeout=20) as classifier:
            return await classifier.classify_many([*images, b"text"])

    with Classifier(address, protocol, timeout=20) as classifier:
        expected = classifier.classify_many(images)
    *answers, bad = asyncio.run(main())
    assert answers == expected
    assert isinstance(bad, InvalidImageError)


def test_large_image(classifier: Classifier) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "BMP")
    assert buffer.tell() > 12_000_000
    assert best(classifier.classify(buffer.getvalue())) == BEST["grey"]


def test_bad_images_harm_no_other(classifier: Classifier, picture: Callable[..., bytes]) -> None:
    good = picture("green")
    images = [good, b"this is text", good, good[:50], good, b"", good]
    outcomes = classifier.classify_many(images)
    assert [type(outcome) for outcome in outcomes[1::2]] == [InvalidImageError] * 3
    assert [best(outcome) for outcome in outcomes[::2]] == [BEST["green"]] * 4
    assert "not a JPEG, PNG" in str(outcomes[1])
    assert "decoded" in str(outcomes[3])


def test_hundred_megabytes_are_refused(classifier: Classifier, picture: Callable[..., bytes]) -> None:
    with pytest.raises(InvalidImageError, match="100000000 bytes, the limit is 20971520"):
        classifier.classify(bytes(100_000_000))
    assert best(classifier.classify(picture("red"))) == BEST["red"]


def test_unknown_model(address: str, protocol: str) -> None:
    with (
        Classifier(address, protocol, model="no such/model") as classifier,
        pytest.raises(ModelNotFoundError) as caught,
    ):
        classifier.classify(b"x")
    assert "'no such/model'" in str(caught.value)


def test_model_that_is_no_classifier(address: str, protocol: str) -> None:
    with Classifier(address, protocol, model="colour") as classifier, pytest.raises(ProtocolError, match="unexpected"):
        classifier.classify(b"x")


def test_model_without_labels(address: str, protocol: str) -> None:
    with Classifier(address, protocol, model="slow") as classifier:
        assert classifier.classify(b"0") == [Prediction("1", 1, 0.75), Prediction("0", 0, 0.25)]


def test_model_that_fails(address: str, protocol: str) -> None:
    with Classifier(address, protocol, model="slow") as classifier:
        with pytest.raises(InferenceError, match="could not convert string to float") as failed:
            classifier.classify(b"not a number")
        with pytest.raises(NotFiniteError, match=r"'-?nan:0'") as overflowed:
            classifier.classify(b"nan")
        assert (failed.value.attempts, overflowed.value.attempts) == (3, 1)
        assert len(classifier.classify(b"0")) == 2


def test_full_queue(address: str, protocol: str) -> None:
    with Classifier(address, protocol, model="slow", timeout=20, retries=0) as classifier:
        outcomes = classifier.classify_many([b"0.3"] * 8)
    kinds = {type(outcome) for outcome in outcomes}
    assert kinds == {list, QueueFullError}, outcomes


def test_a_wait_that_takes_too_much_of_the_deadline_is_told_before_it_ends(address: str, protocol: str) -> None:
    """The server is told how long the request may wait in a queue, and then rejects it."""
    with (
        Classifier(address, protocol, model="slow", timeout=20) as first,
        Classifier(address, protocol, model="slow", timeout=2, retries=0) as second,
        ThreadPoolExecutor(1) as pool,
    ):
        running = pool.submit(first.classify, b"0.7")
        time.sleep(0.3)
        started = time.monotonic()
        with pytest.raises(QueueFullError):
            second.classify(b"0")  # it would have waited for 0.4 s of its 2
        assert time.monotonic() - started < 1.0
        assert len(running.result()) == 2


def test_slow_model(address: str, protocol: str) -> None:
    with Classifier(address, protocol, model="slow", timeout=0.6) as classifier:
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            classifier.classify(b"1.5")
        assert 0.59 < time.monotonic() - started < 0.9
    with Classifier(address, protocol, model="slow", timeout=20) as classifier:
        classifier.classify(b"0")  # leaves the model idle for the next test


@pytest.mark.parametrize("known", [True, False], ids=["connected", "unconnected"])
def test_frozen_server(address: str, protocol: str, picture: Callable[..., bytes], known: bool) -> None:
    image = picture("red")
    with Classifier(address, protocol, timeout=1) as classifier:
        if known:
            classifier.classify(image, timeout=20)
        with frozen(int(address.rpartition(":")[2])):
            started = time.monotonic()
            with pytest.raises(DeadlineExceededError):
                classifier.classify(image)
            assert 0.99 < time.monotonic() - started < 1.5
        classifier.timeout = 20
        assert best(classifier.classify(image)) == BEST["red"]


def test_wrong_protocol_is_said(tiny_server: "TritonServer", picture: Callable[..., bytes]) -> None:  # noqa: F821
    with (
        Classifier(tiny_server.grpc_url, "http") as classifier,
        pytest.raises(ProtocolError, match="use the HTTP port"),
    ):
        classifier.classify(picture("red"))
    with (
        Classifier(tiny_server.http_url, "grpc", timeout=5) as classifier,
        pytest.raises(Exception, match="8001 for gRPC"),
    ):
        classifier.classify(picture("red"))


def test_class_map(classifier: Classifier, picture: Callable[..., bytes]) -> None:
    half = np.zeros((32, 32, 3), np.uint8)
    half[:, 16:] = 255
    explained = classifier.explain(half, top=4)
    assert explained.predictions == classifier.classify(half, top=4)
    np.testing.assert_allclose(explained.class_map, [[0, 0, 1, 1]] * 2)
    assert explained.crop == (0, 0, 1, 1)
    wide = np.zeros((32, 64, 3), np.uint8)
    assert classifier.explain(wide).crop == (0.25, 0, 0.75, 1)


def test_status(classifier: Classifier, picture: Callable[..., bytes]) -> None:
    before = settled(classifier)
    classifier.classify_many([picture("red")] * 3)
    after = settled(classifier)
    assert after[0].ready
    assert after[0].name == "triton"
    assert {"classifier", "colour", "preprocess"} <= {model.name for model in after[0].models}
    times = step_times(before, after)
    assert set(times) == {"classifier", "colour", "preprocess"}
    assert times["colour"]["queue"].count == 3
    steps = [times[name]["compute"].seconds for name in ("colour", "preprocess")]
    assert times["classifier"]["compute"].seconds == pytest.approx(sum(steps), rel=0.01)
    assert 0 < times["preprocess"]["compute"].mean_ms < 1000


def settled(classifier: Classifier) -> list[ServerStatus | ClassifierError]:
    """Wait for the statistics: the server counts a request a little after it has answered it."""
    found = None
    while (last := classifier.status()) != found:
        found = last
        time.sleep(0.05)
    return last


def test_one_dead_server_of_two(address: str, protocol: str, picture: Callable[..., bytes]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
        with Classifier([dead, address], protocol, timeout=20, retries=0) as classifier:
            answers = classifier.classify_many([picture("red")] * 20)
    assert [best(answer) for answer in answers] == [BEST["red"]] * 20
