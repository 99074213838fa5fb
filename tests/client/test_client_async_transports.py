"""The asyncio transports against servers that misbehave on purpose, over both protocols."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from asking import CAT, request
from stub_grpc import GrpcStub, serve
from stub_http import GOOD, Handler, HttpStub, hang_up

from client import (
    Answer,
    AsyncClassifier,
    ClassifierError,
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidImageError,
    ProtocolError,
    QueueFullError,
    ServerNotReadyError,
)
from client._async_grpc import AsyncGrpcTransport
from client._async_http import AsyncHttpTransport

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
            self.http.shutdown()
            self.http.server_close()

    def open(self) -> Any:
        return KINDS[self.protocol]("127.0.0.1", self.port)


@pytest.fixture
def both(protocol: str) -> Iterator[Both]:
    both = Both(protocol)
    yield both
    both.stop()


@pytest.fixture
def stub() -> Iterator[HttpStub]:
    server = HttpStub()
    yield server
    server.shutdown()
    server.server_close()


def ask_once(transport: Any, **changes: Any) -> Answer:
    async def main() -> Answer:
        try:
            return await transport.infer(request(**changes))
        finally:
            await transport.close()

    return asyncio.run(main())


def over_http(stub: HttpStub) -> AsyncHttpTransport:
    return AsyncHttpTransport("127.0.0.1", stub.server_address[1])


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


def test_close_ends_a_request_in_flight(both: Both) -> None:
    both.delay = 1

    async def main() -> None:
        classifier = AsyncClassifier(f"127.0.0.1:{both.port}", both.protocol)
        task = asyncio.create_task(classifier.classify(b"x"))
        await asyncio.to_thread(both.waiting.wait, 5)
        started = time.monotonic()
        await classifier.close()
        with pytest.raises(RuntimeError, match="closed"):
            await task
        assert time.monotonic() - started < 0.5

    asyncio.run(main())
    closed = both.open()

    async def again() -> None:
        await closed.close()  # before the first request
        await closed.infer(request())

    with pytest.raises(ConnectionFailedError):
        asyncio.run(again())


def test_no_server(protocol: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        with pytest.raises(ConnectionFailedError):
            ask_once(KINDS[protocol]("127.0.0.1", taken.getsockname()[1]))


def test_deadline_is_for_connecting_too(protocol: str, unreachable: int) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        ask_once(KINDS[protocol]("127.0.0.1", unreachable), timeout=0.6)
    assert 0.59 < time.monotonic() - started < 0.95


def test_connecting_may_have_a_bound_of_its_own(protocol: str, unreachable: int) -> None:
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError):
        ask_once(KINDS[protocol]("127.0.0.1", unreachable, None, 0.3), timeout=5)
    assert time.monotonic() - started < 2


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


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b'{"error": "in ensemble \'m\', not a JPEG"}', InvalidImageError),
        (413, b"", InvalidImageError),
        (503, b'{"error": "Exceeds maximum queue size"}', QueueFullError),
        (502, b"", ConnectionFailedError),
        (302, b"", ProtocolError),
        (200, b"not json", ProtocolError),
    ],
)
def test_http_statuses(stub: HttpStub, status: int, body: bytes, kind: type[ClassifierError]) -> None:
    stub.status, stub.body = status, body
    with pytest.raises(kind):
        ask_once(over_http(stub))


def test_the_server_is_not_asked_to_compress(stub: HttpStub) -> None:
    encodings = []
    stub.act = lambda handler: encodings.append(handler.headers["Accept-Encoding"]) or False
    ask_once(over_http(stub))
    assert encodings == ["identity"]


def test_connection_that_died_idle_is_replaced(stub: HttpStub) -> None:
    def close_after(handler: Handler) -> bool:
        handler.close_connection = True  # without saying so, as after an idle timeout
        return False

    async def main() -> None:
        transport = over_http(stub)
        for _ in range(3):
            assert (await transport.infer(request())).predictions == CAT
        await transport.close()

    stub.act = close_after
    asyncio.run(main())
    stub.act = lambda handler: False
    asyncio.run(main())
    assert stub.connections == 4  # kept alive the second time


def test_connection_that_dies_unseen_is_replaced(stub: HttpStub) -> None:
    """The server hangs up only when the next request is there: it cannot have been noticed before."""

    async def main() -> None:
        transport = over_http(stub)
        await transport.infer(request())
        stub.act = once(hang_up)
        assert (await transport.infer(request())).predictions == CAT
        await transport.close()

    asyncio.run(main())
    assert stub.connections == 2


def once(act: Callable[[Handler], bool]) -> Callable[[Handler], bool]:
    left = [act]
    return lambda handler: left.pop()(handler) if left else False


def test_fresh_connection_that_dies_is_not_tried_again(stub: HttpStub) -> None:
    stub.act = hang_up
    with pytest.raises(ConnectionFailedError):
        ask_once(over_http(stub))
    assert stub.connections == 1


def test_deadline_is_for_the_whole_answer(stub: HttpStub) -> None:
    def drip(handler: Handler) -> bool:
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + b" " * 99:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.02)
        return True

    stub.act = drip
    with pytest.raises(DeadlineExceededError):
        ask_once(over_http(stub), timeout=0.6)


def test_cut_answer_and_other_protocol(stub: HttpStub) -> None:
    def answer(data: bytes) -> Callable[[Handler], bool]:
        def act(handler: Handler) -> bool:
            handler.rfile.read(int(handler.headers["Content-Length"]))
            handler.wfile.write(data)
            return hang_up(handler)

        return act

    stub.act = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
    with pytest.raises(ConnectionFailedError):
        ask_once(over_http(stub))
    stub.act = answer(b"\x00\x00\x18\x04\x00\x00\x00\x00\x00" + b"\x00" * 200 + b"\r\n")
    with pytest.raises(ProtocolError, match="does not speak HTTP"):
        ask_once(over_http(stub))
    stub.act = answer(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + GOOD)
    assert ask_once(over_http(stub)).predictions == CAT


def test_refusal_before_the_body_was_read(stub: HttpStub) -> None:
    def refuse(handler: Handler) -> bool:
        handler.wfile.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        handler.connection.shutdown(socket.SHUT_WR)
        time.sleep(0.2)
        handler.close_connection = True
        return True

    stub.act = refuse
    with pytest.raises(InvalidImageError, match="no request that large"):
        ask_once(over_http(stub), image=bytes(50_000_000))


def test_host_that_is_no_name() -> None:
    with pytest.raises(ConnectionFailedError):
        ask_once(AsyncHttpTransport("a..b", 1))
