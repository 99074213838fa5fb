"""The blocking HTTP transport's connections: kept, bounded in time, closed."""

import contextlib
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest
from asking import CAT, ask, resolve_to
from stub_http import HttpStub, answer

from client import (
    TLS,
    ClassifierError,
    ConnectionBrokenError,
    ConnectionFailedError,
    DeadlineExceededError,
    ProtocolError,
    _fork,
)
from client._address import CONNECT_SECONDS, Address, addresses
from client._connection import IDLE_SECONDS
from client._transport_http import HttpTransport


@pytest.fixture
def blocking(stub: HttpStub) -> Iterator[HttpTransport]:
    with contextlib.closing(HttpTransport(Address("127.0.0.1", stub.server_address[1]))) as transport:
        yield transport


def test_connections_are_used_again(stub: HttpStub, blocking: HttpTransport) -> None:
    for _ in range(5):
        ask(blocking)
    assert stub.connections == 1
    (kept,) = blocking._idle
    assert kept.sock._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # else a delayed ACK may hold a body up
    threads = [threading.Thread(target=ask, args=(blocking,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stub.requests) == 13
    assert stub.connections <= 9


def test_a_connection_that_lay_idle_for_long_is_not_used_again(
    stub: HttpStub, blocking: HttpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A balancer may drop it silently: the next request on it would wait for its deadline."""
    now = time.monotonic()
    monkeypatch.setattr("client._connection.time.monotonic", lambda: now)
    for connections in (1, 1, 2):
        ask(blocking)
        assert stub.connections == connections
        now += IDLE_SECONDS - 1 if connections == 1 and len(stub.requests) == 1 else IDLE_SECONDS + 1
    assert len(blocking._idle) == 1


FORKS = """
import os, sys
from client import Classifier
classifier = Classifier(sys.argv[1], "http")
classifier.classify(b"x")
child = os.fork()
classifier.classify(b"x")
if child:
    assert os.waitpid(child, 0)[1] == 0
    classifier.classify(b"x")
"""


def test_a_forked_process_has_connections_of_its_own(stub: HttpStub) -> None:
    """Two processes that shared one connection got each other's answers."""
    subprocess.run([sys.executable, "-c", FORKS, f"127.0.0.1:{stub.server_address[1]}"], check=True)
    assert (len(stub.requests), stub.connections) == (4, 2)


def test_what_was_there_before_a_fork_is_the_parents(stub: HttpStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fork, "_ALL", weakref.WeakSet())
    with contextlib.closing(HttpTransport(Address("127.0.0.1", stub.server_address[1]))) as transport:
        ask(transport)
        (kept,) = transport._idle
        _fork.forget_all()
        transport.close()
        assert kept.sock is not None
        kept.close()


def test_deadline_is_for_connecting_too(unreachable: int) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        ask(HttpTransport(Address("127.0.0.1", unreachable)), 1, 0.6)
    assert 0.59 < time.monotonic() - started < 0.9


@pytest.mark.parametrize("bound", [None, 0.3])
def test_a_name_that_is_not_found_in_time(stub: HttpStub, monkeypatch: pytest.MonkeyPatch, bound: float | None) -> None:
    resolve_to(monkeypatch, stub.server_address[1], after=2.0)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError if bound is None else ConnectionFailedError):
        ask(HttpTransport(Address("slow", 1, None, bound)), 1, 0.6)
    assert time.monotonic() - started < 0.9


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(ConnectionFailedError, match=r"unknown\.invalid"):
        ask(HttpTransport(Address("unknown.invalid", 8000)))


def test_deadline_is_for_all_of_a_names_addresses(unreachable: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, *[unreachable] * 4)
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        ask(HttpTransport(Address("many", unreachable)), 1, 0.6)
    assert 0.59 < time.monotonic() - started < 0.9


def test_a_silent_address_leaves_time_for_the_next(
    unreachable: int, stub: HttpStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, unreachable, stub.server_address[1])
    with contextlib.closing(HttpTransport(Address("two", unreachable))) as transport:
        assert ask(transport, 1, 0.8) == CAT


def test_connecting_may_have_a_bound_of_its_own(unreachable: int) -> None:
    """With several servers, connecting has a shorter time limit than the request."""
    assert [each.connect_timeout for each in addresses("box", "http", None)] == [None]
    assert [each.connect_timeout for each in addresses(["box", "other"], "http", None)] == [CONNECT_SECONDS] * 2
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError, match=r"not connected within 0\.3 s"):
        ask(HttpTransport(Address("127.0.0.1", unreachable, None, 0.3)))
    assert time.monotonic() - started < 0.6


def closed_while(transport: HttpTransport, waiting: Callable[[], object]) -> list[type[Exception]]:
    """The errors of a request whose transport is closed once `waiting` has returned."""
    caught: list[type[Exception]] = []

    def wait() -> None:
        try:
            ask(transport, 1, 10)
        except ClassifierError as error:
            caught.append(type(error))

    thread = threading.Thread(target=wait)
    thread.start()
    waiting()
    transport.close()
    thread.join(1)
    assert not thread.is_alive()
    return caught


def test_close_ends_a_request_in_flight(stub: HttpStub, blocking: HttpTransport) -> None:
    ask(blocking)  # over one that lay idle
    waiting = threading.Event()
    stub.act = lambda handler: waiting.set() or time.sleep(3) or False
    assert closed_while(blocking, lambda: waiting.wait(5)) == [ConnectionBrokenError]


def test_close_ends_connecting(unreachable: int, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, unreachable, unreachable)  # nor is the next address tried
    transport = HttpTransport(Address("two", unreachable))
    assert closed_while(transport, lambda: time.sleep(0.3)) == [ConnectionFailedError]


def test_close_ends_a_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, 1, after=3.0)
    assert closed_while(HttpTransport(Address("slow", 1)), lambda: time.sleep(0.3)) == [ConnectionFailedError]


def test_close_ends_a_handshake() -> None:
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        def hello() -> None:
            stack.enter_context(silent.accept()[0]).recv(1)

        transport = HttpTransport(Address("127.0.0.1", silent.getsockname()[1], TLS()))
        assert closed_while(transport, hello) == [ConnectionFailedError]


def test_an_answer_of_impossible_size(stub: HttpStub, blocking: HttpTransport) -> None:
    """http.client would allocate it all before a byte has come; aiohttp does not."""
    stub.act = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000000\r\n\r\n{")
    with pytest.raises(ProtocolError, match=rf"an answer of 100000000000000 bytes.*\[{blocking.url}\]$"):
        ask(blocking)
    assert blocking._idle == []


def test_close_leaves_no_connection(stub: HttpStub, blocking: HttpTransport) -> None:
    ask(blocking)
    blocking.close()
    assert blocking._idle == []
    ask(blocking)  # the Classifier above says no; whoever finishes late must not keep one either
    assert blocking._idle == []


class TakenMeanwhile(list):
    """A list whose last entry disappears between the check and the pop."""

    def __bool__(self) -> bool:
        return True


def test_close_meets_a_request_that_takes_the_last_connection(blocking: HttpTransport) -> None:
    blocking._idle = TakenMeanwhile()
    blocking.close()
