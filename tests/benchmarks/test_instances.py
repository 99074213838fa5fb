"""Servers that are compared are asked in turn, and each turn has a ratio of its own."""

import json
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import first_request, instances, transports
from benchmarks.serving import servers
from benchmarks.serving.load import Request
from benchmarks.serving.servers import Running
from benchmarks.timing import Timing
from client import Prediction

RIGHT = [0.1, 0.3, 0.2, 0.15, 0.25]


@pytest.fixture
def two_servers(monkeypatch):
    """Two servers, asked with one picture whose probabilities are RIGHT."""

    @contextmanager
    def ours(repository, picture):
        yield Running(repository, 1, 0.0, lambda image: Request("/", image), json.loads)

    monkeypatch.setattr(instances, "build_repository", lambda *_: "two")
    monkeypatch.setattr(instances, "one_of_all", lambda *_: "one")
    monkeypatch.setattr(instances, "CALLERS", (8,))
    monkeypatch.setattr(instances, "ours", ours)
    monkeypatch.setattr(instances, "expected", lambda *_: [RIGHT])
    for module in (instances, servers):
        monkeypatch.setattr(module, "turned", lambda: [b"picture"])


@pytest.mark.usefixtures("two_servers")
@pytest.mark.parametrize(("server", "probability"), [("two", 0.31), ("one", 0.31), ("neither", 0.31), ("one", 0.3001)])
def test_a_wrong_answer_ends_the_run(monkeypatch, server, probability):
    """Every answer of status 200 counted, whatever it said."""

    def closed_loop(port, requests, callers, seconds):
        answer = [{"index": index, "probability": RIGHT[index]} for index in (1, 4, 2, 3, 0)]
        answer[0]["probability"] = probability if port == server else 0.3
        errors = sum(not request.is_right(json.dumps(answer).encode()) for request in requests)
        return {"errors": errors, "images_per_s": 1.0, "p50_ms": 1.0, "p99_ms": 1.0}

    monkeypatch.setattr(instances, "closed_loop", closed_loop)
    refused = server != "neither" and probability == 0.31
    said = f"callers: wrong answers {{'{server}': 1}}: no speed reported"
    with pytest.raises(SystemExit, match=said) if refused else nullcontext():
        instances.measure("nano", 1, 0.5, 2)


@pytest.mark.usefixtures("two_servers")
def test_the_ratio_is_the_median_of_the_turns_own(monkeypatch):
    """On a machine that becomes slower the ratio of the medians differs from it."""
    asked, rates = [], iter([0, 0, 60.0, 20.0, 40.0, 50.0, 10.0, 5.0])  # first both are warmed up

    def closed_loop(port, requests, callers, seconds):
        asked.append((port, callers, seconds))
        rate = next(rates)
        return {"errors": 0, "images_per_s": rate, "p50_ms": 1.0, "p99_ms": rate}

    monkeypatch.setattr(instances, "closed_loop", closed_loop)
    (row,) = instances.measure("nano", 3, 0.5, 2)
    assert [port for port, _, _ in asked[2:]] == ["two", "one", "one", "two", "two", "one"]
    assert {(callers, seconds) for _, callers, seconds in asked[2:]} == {(8, 0.5)}
    assert row["ratios"] == [1.25, 2.0, 3.0]
    assert row["ratio"] == 2.0
    assert (row["two_images_per_s"], row["one_images_per_s"], row["two_p99_ms"]) == (50.0, 20.0, 50.0)


def test_a_way_that_answers_otherwise_is_not_timed(monkeypatch):
    thousandth = [Prediction(str(index), index, 0.001) for index in range(5)]
    monkeypatch.setattr(transports, "call", lambda data: thousandth, raising=False)
    transports.check("gRPC")
    for wrong in (thousandth[1:], [*thousandth[1:], Prediction("5", 5, 0.002)]):
        monkeypatch.setattr(transports, "call", lambda data, wrong=wrong: wrong)
        with pytest.raises(RuntimeError, match=r"gRPC answers .*, not 5 classes of 0\.001: no speed reported"):
            transports.check("gRPC")
    monkeypatch.setattr(transports, "call", lambda data: np.array([[b"0.001000:7"] * 5], object))  # tritonclient's
    transports.check("gRPC, tritonclient")


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_first_request_with_another_answer_is_not_told(monkeypatch, factor):
    right = np.array([0.1, 0.3, 0.2], np.float32)
    answer = SimpleNamespace(as_numpy=lambda name: (right * np.float32(factor))[None])
    client = SimpleNamespace(is_server_live=lambda: True, infer=lambda *_: answer)
    monkeypatch.setattr("server.TritonServer", lambda *_: nullcontext(SimpleNamespace(grpc_url="")), raising=False)
    monkeypatch.setattr("tritonclient.grpc.InferenceServerClient", lambda url: nullcontext(client))
    monkeypatch.setattr(first_request, "PAUSE", 0.0)
    with nullcontext() if factor == 1 else pytest.raises(SystemExit, match=r"best class has 0\.330000, not 0\.300000"):
        _, later = first_request.one_start("", b"image", right, 4)
        assert len(later) == 20


def test_messages_are_compared_with_tritonclient_and_memory_with_messages():
    times = {"": 2.0, ", shared memory": 1.0, ", tritonclient": 8.0}
    timings = {
        name + way: Timing(factor * ms, 0, 0, 1)
        for name, factor in (("gRPC", 1), ("HTTP", 3))
        for way, ms in times.items()
    }
    timings["HTTP, tritonclient"] = Timing(6.0, 0, 0, 1)
    assert transports.ratios(timings) == {
        "gRPC": {"over_tritonclient": 0.25, "shared_over_messages": 0.5},
        "HTTP": {"over_tritonclient": 1.0, "shared_over_messages": 0.5},
    }
