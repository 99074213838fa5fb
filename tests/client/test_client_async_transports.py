"""The asyncio transports over both protocols, against servers that misbehave on purpose."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from asking import CAT, request, resolve_to
from stub_grpc import GrpcStub, serve
from stub_http import HttpStub

from client import (
    Answer,
    AsyncClassifier,
    ClassifierError,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidImageError,
    QueueFullError,
    ServerNotReadyError,
)
from client._address import Address
from client._async_http import AsyncHttpTransport
from client._transport_grpc import AsyncGrpcTransport

KINDS = {"grpc": AsyncGrpcTransport, "http": AsyncHttpTransport}


class Both:
    """One of the two stubs; `delay` seconds before each answer."""

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.delay = 0.0
        self.waiting = threading.Event()
        if protocol == "grpc":
            self.grpc = GrpcStub()
            self.grpc.act = self.act
            self.server, self.port = serve(self.grpc)
        else:
            self.http = HttpStub()
            self.http.act = self.act
            self.port = self.http.server_address[1]

    def act(self, context: Any) -> bool:
        self.waiting.set()
        time.sleep(self.delay)
        return False

    @property
    def count(self) -> int:
        return len(self.grpc.requests if self.protocol == "grpc" else self.http.requests)

    def stop(self) -> None:
        if self.protocol == "grpc":
            self.server.stop(0).wait()
        else:
            self.http.stop()

    def open(self) -> Any:
        return KINDS[self.protocol](Address("127.0.0.1", self.port))


@pytest.fixture
def both(protocol: str) -> Iterator[Both]:
    both = Both(protocol)
    yield both
    both.stop()


def ask_once(transport: Any, **changes: Any) -> Answer:
    async def main() -> Answer:
        try:
            return await transport.infer(request(**changes))
        finally:
            await transport.close()

    return asyncio.run(main())


def test_answer(both: Both) -> None:
    assert ask_once(both.open()).predictions == CAT


def test_large_messages(both: Both) -> None:
    assert ask_once(both.open(), image=bytes(12_000_000), timeout=30).predictions == CAT


def test_many_at_once_on_one_transport(both: Both) -> None:
    async def main() -> None:
        transport = both.open()
        answers = await asyncio.gather(*(transport.infer(request(timeout=20)) for _ in range(50)))
        assert [answer.predictions for answer in answers] == [CAT] * 50
        await transport.close()

    asyncio.run(main())


def test_deadline(both: Both) -> None:
    both.delay = 1
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"within 0\.6 s"):
        ask_once(both.open(), timeout=0.6)
    assert 0.59 < time.monotonic() - started < 0.95


def test_cancelled_at_once(both: Both) -> None:
    both.delay = 1

    async def main() -> None:
        transport = both.open()
        task = asyncio.create_task(transport.infer(request()))
        await asyncio.to_thread(both.waiting.wait, 5)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - started < 0.5
        both.delay = 0
        assert (await transport.infer(request())).predictions == CAT
        await transport.close()

    asyncio.run(main())


async def assert_close_ends(classifier: AsyncClassifier, task: "asyncio.Task[object]") -> None:
    started = time.monotonic()
    await classifier.close()
    with pytest.raises(RuntimeError, match="closed"):
        await task
    assert time.monotonic() - started < 0.5


def test_close_ends_a_request_in_flight(both: Both) -> None:
    both.delay = 1

    async def main() -> None:
        classifier = AsyncClassifier(f"127.0.0.1:{both.port}", both.protocol)
        task = asyncio.create_task(classifier.classify(b"x"))
        await asyncio.to_thread(both.waiting.wait, 5)
        await assert_close_ends(classifier, task)

    asyncio.run(main())
    closed = both.open()

    async def again() -> None:
        await closed.close()  # before the first request
        await closed.infer(request())

    with pytest.raises(ConnectionFailedError):
        asyncio.run(again())


def test_close_ends_a_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP only: gRPC has its own resolver."""
    resolve_to(monkeypatch, 1, after=1.0)

    async def main() -> None:
        classifier = AsyncClassifier("slow:1", "http", retries=0)
        task = asyncio.create_task(classifier.classify(b"x"))
        await asyncio.sleep(0.3)
        await assert_close_ends(classifier, task)

    asyncio.run(main())


def test_no_server(protocol: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        with pytest.raises(ConnectionFailedError):
            ask_once(KINDS[protocol](Address("127.0.0.1", taken.getsockname()[1])))


def test_deadline_is_for_connecting_too(protocol: str, unreachable: int) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        ask_once(KINDS[protocol](Address("127.0.0.1", unreachable)), timeout=0.6)
    assert 0.59 < time.monotonic() - started < 0.95


def test_connecting_may_have_a_bound_of_its_own(protocol: str, unreachable: int) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError):
        ask_once(KINDS[protocol](Address("127.0.0.1", unreachable, None, 0.3)), timeout=5)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(("bound", "kind"), [(None, DeadlineExceededError), (0.2, ConnectionFailedError)])
def test_the_bounds_are_for_looking_up_a_name_too(
    monkeypatch: pytest.MonkeyPatch, bound: float | None, kind: type[ClassifierError]
) -> None:
    resolve_to(monkeypatch, after=1.2)

    async def seconds() -> float:
        transport = AsyncHttpTransport(Address("slow", 1, None, bound))
        started = time.monotonic()
        with pytest.raises(kind):
            await transport.infer(request(1, 0.6))
        passed = time.monotonic() - started
        await transport.close()
        return passed

    passed = asyncio.run(seconds())  # its end waits for the look-up
    assert passed < 0.9 if bound is None else passed < 0.5


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "in ensemble 'm', not a JPEG", InvalidImageError),
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size", QueueFullError),
        (grpc.StatusCode.UNAVAILABLE, "not ready", ServerNotReadyError),
    ],
)
def test_grpc_statuses(code: grpc.StatusCode, details: str, kind: type[ClassifierError]) -> None:
    both = Both("grpc")
    both.grpc.act = lambda context: context.abort(code, details)
    with pytest.raises(kind):
        ask_once(both.open())
    both.stop()
