"""Server status and class maps, over both protocols, blocking and asyncio."""

import asyncio
import json
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from asking import CAT
from stub_grpc import GrpcStub, serve
from stub_http import HttpStub

from client import (
    AsyncClassifier,
    Classifier,
    ClassifierError,
    ConnectionFailedError,
    DeadlineExceededError,
    ModelStatus,
    ProtocolError,
    ServerNotReadyError,
    ServerStatus,
    Times,
    step_times,
)
from client.testing import AsyncFakeTransport, FakeTransport

STATISTICS = {
    "model_stats": [
        {
            "name": "backbone",
            "version": "2",
            "inference_count": 8,
            "execution_count": 4,
            "inference_stats": {
                "success": {"count": 8, "ns": 8_000_000_000},
                "fail": {"count": 1, "ns": 5},
                "queue": {"count": 8, "ns": 2_000_000_000},
                "compute_infer": {"count": 8, "ns": 4_000_000_000},
            },
        },
        {"name": "a", "version": "1"},
    ]
}
NONE = Times(0, 0.0)
MODELS = [
    ModelStatus("a", "1", 0, 0, NONE, NONE, NONE, NONE, NONE, NONE),
    ModelStatus("backbone", "2", 8, 4, Times(8, 8.0), Times(1, 5e-9), Times(8, 2.0), NONE, Times(8, 4.0), NONE),
]
MAP = np.arange(6, dtype=np.float32).reshape(2, 3)


class Server:
    """Either stub; `url` is a Classifier's."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        if protocol == "grpc":
            self.grpc = GrpcStub()
            self.server, port = serve(self.grpc)
        else:
            self.http = HttpStub()
            port = self.http.server_address[1]
        self.url = f"127.0.0.1:{port}"
        self.say(ready=True)

    def say(self, ready: bool, statistics: Any = STATISTICS) -> None:
        if self.protocol == "grpc":
            self.grpc.ready, self.grpc.statistics = ready, statistics
        else:
            metadata = json.dumps({"name": "triton", "version": "2.51.0"}).encode()
            self.http.pages = {
                "/v2": (200, metadata),
                "/v2/health/ready": (200 if ready else 400, b""),
                "/v2/models/stats": (200, json.dumps(statistics).encode()),
            }

    def explain(self, crop: Sequence[float], shape: Sequence[int] = (2, 3)) -> None:
        sides = [1, *np.shape(crop)]
        if self.protocol == "grpc":
            self.grpc.names, self.grpc.shapes = (
                ["class_map", "crop", "probabilities"],
                [[1, *shape], sides, [1, 1]],
            )
            self.grpc.raw[:0] = [MAP.tobytes(), np.array(crop, np.float32).tobytes()]
        else:
            outputs = [
                {"name": "class_map", "shape": [1, *shape], "data": MAP.reshape(-1).tolist()},
                {"name": "crop", "shape": sides, "data": np.ravel(crop).tolist()},
                {"name": "probabilities", "data": ["0.9:1:cät"]},
            ]
            self.http.body = json.dumps({"outputs": outputs}).encode()

    def asked_for(self) -> list[str]:
        """The outputs that the last request asks for."""
        if self.protocol == "grpc":
            return [output.name for output in self.grpc.requests[-1].outputs]
        return [output["name"] for output in json.loads(self.http.requests[-1][1])["outputs"]]

    def stop(self) -> None:
        if self.protocol == "grpc":
            self.server.stop(0).wait()
        else:
            self.http.stop()


@pytest.fixture
def server(protocol: str) -> Iterator[Server]:
    server = Server(protocol)
    yield server
    server.stop()


@pytest.fixture(params=["blocking", "asyncio"])
def call(request: pytest.FixtureRequest, protocol: str) -> Callable[..., Any]:
    """call(url, name, *arguments) of a client that is opened and closed around it."""

    def blocking(url: str, name: str, *arguments: Any) -> Any:
        with Classifier(url, protocol, timeout=5, retries=0) as classifier:
            return getattr(classifier, name)(*arguments)

    async def main(url: str, name: str, *arguments: Any) -> Any:
        async with AsyncClassifier(url, protocol, timeout=5, retries=0) as classifier:
            return await getattr(classifier, name)(*arguments)

    return blocking if request.param == "blocking" else lambda *arguments: asyncio.run(main(*arguments))


@pytest.mark.parametrize("ready", [True, False])
def test_status(server: Server, protocol: str, call: Callable[..., Any], ready: bool) -> None:
    server.say(ready)
    assert call(server.url, "status") == [ServerStatus(f"{protocol}://{server.url}", "triton", "2.51.0", ready, MODELS)]


def test_status_of_nobody(server: Server, call: Callable[..., Any]) -> None:
    server.stop()
    (error,) = call(server.url, "status", 2.0)
    assert isinstance(error, ConnectionFailedError)


def test_class_map(server: Server, call: Callable[..., Any]) -> None:
    server.explain((0.25, 0, 0.75, 1))
    explained = call(server.url, "explain", b"x")
    assert explained.crop == (0.25, 0, 0.75, 1)
    assert server.asked_for() == ["probabilities", "class_map", "crop"]
    assert explained.predictions == CAT
    assert explained.class_map.dtype == np.float32
    np.testing.assert_array_equal(explained.class_map, MAP)
    assert explained.class_map.flags.writeable


def test_no_class_map_in_the_answer(server: Server, call: Callable[..., Any]) -> None:
    with pytest.raises(ProtocolError, match="no probabilities, class_map and crop"):
        call(server.url, "explain", b"x")


@pytest.mark.parametrize(
    ("crop", "shape"),
    [
        ((0.5, 0, 0.5, 1), (2, 3)),
        ((0, 0, 1, math.inf), (2, 3)),
        ((0, 0, 1, 1), (6,)),
        ((0, 1, 1, 2), (2, 3)),  # below the picture
        ([[0], [0], [1], [1]], (2, 3)),
        (0.5, (2, 3)),
    ],
)
def test_an_impossible_class_map(server: Server, call: Callable[..., Any], crop: Any, shape: Any) -> None:
    server.explain(crop, shape)
    with pytest.raises(ProtocolError, match="no probabilities, class_map and crop"):
        call(server.url, "explain", b"x")


def test_odd_http_answers() -> None:
    server = Server("http")
    with Classifier(server.url, "http", timeout=5) as classifier:
        for page, kind in (
            ((503, b"starting"), ServerNotReadyError),
            ((200, b"<html>"), ProtocolError),
            ((200, b"[1]"), ProtocolError),
            ((200, b'{"model_stats": [{"version": "1"}]}'), ProtocolError),
        ):
            server.http.pages["/v2/models/stats"] = page
            (error,) = classifier.status()
            assert type(error) is kind
    server.stop()


def test_status_has_one_deadline(server: Server, protocol: str, call: Callable[..., Any]) -> None:
    """One deadline for all of its requests, though each is answered within it."""
    (server.grpc if protocol == "grpc" else server.http).pause = 0.25
    (error,) = call(server.url, "status", 0.6)
    assert isinstance(error, DeadlineExceededError)


def test_all_servers_are_asked_at_once() -> None:
    """A silent server does not delay the others."""
    together = threading.Barrier(3)

    class Meeting(FakeTransport):
        def status(self, timeout: float) -> ServerStatus:
            together.wait(timeout)  # BrokenBarrierError unless all three are asked
            return super().status(timeout)

    found = Classifier(transport=[Meeting(url=url) for url in ("one", "two", "three")]).status(2)
    assert [status.url for status in found if isinstance(status, ServerStatus)] == ["one", "two", "three"]


def test_times() -> None:
    assert Times(4, 2.0).mean_ms == 500
    assert Times(0, 0.0).mean_ms == 0


def status(*counts: int, queued: float = 0.5) -> ServerStatus:
    """The status of a server whose model b has two versions; `queued`: seconds a request."""
    models = [
        ModelStatus(name, version, 0, 0, NONE, NONE, Times(n, queued * n), NONE, Times(n, 2.0 * n), NONE)
        for (name, version), n in zip((("b", "1"), ("b", "2"), ("idle", "1")), counts, strict=False)
    ]
    return ServerStatus("u", "triton", "0", True, models)


def test_step_times_are_of_what_happened_between() -> None:
    away: ClassifierError = ConnectionFailedError("refused")
    found = step_times([status(1, 2, 3), status(0, 0, 0), away], [status(2, 4, 3), status(5, 0, 0), status(9, 9, 9)])
    assert found == {
        "b": {"queue": Times(8, 4.0), "compute_input": NONE, "compute": Times(8, 16.0), "compute_output": NONE}
    }


@pytest.mark.parametrize(
    ("before", "after", "queue"),
    [
        (status(9, 4), status(3, 1), Times(4, 2.0)),
        (status(9, 4), status(3, 6), Times(3 + 2, 2.5)),  # one version was loaded anew
        (status(9), status(10, 6), Times(1 + 6, 3.5)),  # a version is new
        (status(9, 4), status(10), Times(1, 0.5)),  # the other is gone: what it did meanwhile is not known
        (status(2, queued=8.0), status(3, queued=1.0), Times(3, 3.0)),  # more requests, in less time
    ],
)
def test_step_times_count_from_a_restart(before: ServerStatus, after: ServerStatus, queue: Times) -> None:
    assert step_times([before], [after])["b"]["queue"] == queue


def test_what_a_model_counted_since() -> None:
    (_, before) = MODELS
    after = replace(before, inferences=12, executions=5, success=Times(12, 9.0), failure=Times(3, 1.0))
    since = ModelStatus("backbone", "2", 4, 1, Times(4, 1.0), Times(2, 1.0 - 5e-9), NONE, NONE, NONE, NONE)
    assert after.since(before) == since
    for fallen in (replace(after, executions=3), replace(after, failure=NONE)):
        assert fallen.since(before) == fallen
    assert after.since(None) == after


def test_fakes_have_a_status() -> None:
    expected = [ServerStatus("fake://server", "fake", "0", True, [])]
    assert Classifier(transport=FakeTransport()).status() == expected
    assert asyncio.run(AsyncClassifier(transport=AsyncFakeTransport()).status()) == expected
