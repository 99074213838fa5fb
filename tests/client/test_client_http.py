"""The HTTP transport against a server that misbehaves on purpose."""

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest
from asking import CAT, ask
from stub_http import GOOD, Handler, HttpStub, hang_up

from client import (
    ClassifierError,
    ConnectionFailedError,
    DeadlineExceededError,
    InferenceError,
    InvalidImageError,
    ModelNotFoundError,
    ProtocolError,
    QueueFullError,
    ServerNotReadyError,
    ServerUnavailableError,
)
from client._transport_http import HttpTransport


@pytest.fixture
def stub() -> Iterator[HttpStub]:
    server = HttpStub()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def transport(stub: HttpStub) -> Iterator[HttpTransport]:
    transport = HttpTransport("127.0.0.1", stub.server_address[1])
    yield transport
    transport.close()


def test_request_and_answer(stub: HttpStub, transport: HttpTransport) -> None:
    assert ask(transport, 3, 2.5, image=b"picture", model="a/b c") == CAT
    ((path, header),) = stub.requests
    assert path == "/v2/models/a%2Fb%20c/infer"
    assert json.loads(header) == {
        "id": "id-1",
        "inputs": [{"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 4 + 7}}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 3, "binary_data": False}}],
        "parameters": {"timeout": 1_250_000},
    }


def test_image_is_one_string_element(stub: HttpStub, transport: HttpTransport) -> None:
    seen = []

    def keep(handler: Handler) -> bool:
        seen.append(handler.rfile.read(int(handler.headers["Content-Length"])))
        return hang_up(handler)

    stub.act = keep
    with pytest.raises(ServerUnavailableError):
        ask(transport, 1, 5, image=b"picture")
    assert seen[0].endswith(b"}" + struct.pack("<I", 7) + b"picture")


def test_connections_are_used_again(stub: HttpStub, transport: HttpTransport) -> None:
    for _ in range(5):
        ask(transport)
    assert stub.connections == 1
    threads = [threading.Thread(target=ask, args=(transport,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stub.requests) == 13
    assert stub.connections <= 9


def test_connection_that_died_idle_is_replaced(stub: HttpStub, transport: HttpTransport) -> None:
    def close_after(handler: Handler) -> bool:
        handler.close_connection = True  # without saying so, as after an idle timeout
        return False

    stub.act = close_after
    for _ in range(3):
        assert ask(transport) == CAT
    assert stub.connections == 3


def test_fresh_connection_that_dies_is_not_tried_again(stub: HttpStub, transport: HttpTransport) -> None:
    stub.act = hang_up
    with pytest.raises(ServerUnavailableError, match="closed connection"):
        ask(transport)
    assert stub.connections == 1


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b'{"error": "in ensemble \'m\', not a JPEG"}', InvalidImageError),
        (400, b"{\"error\": \"unexpected inference input 'image' for model 'm'\"}", ProtocolError),
        (404, b'{"error": "Request for unknown model: \'m\' is not found"}', ModelNotFoundError),
        (404, b"<html>not here</html>", ProtocolError),
        (408, b"", DeadlineExceededError),
        (413, b"", InvalidImageError),
        (429, b"slow down", QueueFullError),
        (500, b'{"error": "it broke"}', InferenceError),
        (500, b'["it broke"]', InferenceError),
        (502, b"\xff\xfe", ConnectionFailedError),
        (503, b'{"error": "Exceeds maximum queue size"}', QueueFullError),
        (503, b'{"error": "not ready"}', ServerNotReadyError),
        (504, b"", DeadlineExceededError),
        (302, b"", ProtocolError),
        (200, b"not json", ProtocolError),
        (200, b"{}", ProtocolError),
        (200, b'{"outputs": []}', ProtocolError),
        (200, b'{"outputs": [{"name": "probabilities", "data": 3}]}', ProtocolError),
    ],
)
def test_statuses(
    stub: HttpStub, transport: HttpTransport, status: int, body: bytes, kind: type[ClassifierError]
) -> None:
    stub.status, stub.body = status, body
    with pytest.raises(ClassifierError) as caught:
        ask(transport)
    assert type(caught.value) is kind
    assert transport.url in str(caught.value)


def test_no_server() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        started = time.monotonic()
        with pytest.raises(ServerUnavailableError, match="refused"):
            ask(HttpTransport("127.0.0.1", taken.getsockname()[1]))
        assert time.monotonic() - started < 1


def test_host_that_is_no_name() -> None:
    with pytest.raises(ServerUnavailableError, match="label"):
        ask(HttpTransport("a..b", 1))


def test_silent_server(stub: HttpStub, transport: HttpTransport) -> None:
    stub.act = lambda handler: time.sleep(2) or False
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"within 0\.6 s"):
        ask(transport, 1, 0.6)
    assert 0.59 < time.monotonic() - started < 0.9
    stub.act = lambda handler: False
    assert ask(transport) == CAT  # on a connection that is not waiting for the old answer


def test_deadline_is_for_connecting_too(unreachable: int) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        ask(HttpTransport("127.0.0.1", unreachable), 1, 0.6)
    assert 0.59 < time.monotonic() - started < 0.9


def test_connecting_may_have_a_bound_of_its_own(unreachable: int) -> None:
    """Where another server is left."""
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError, match=r"not connected within 0\.3 s"):
        ask(HttpTransport("127.0.0.1", unreachable, None, 0.3))
    assert time.monotonic() - started < 0.6


def test_server_may_close_each_connection(stub: HttpStub, transport: HttpTransport) -> None:
    def say_so(handler: Handler) -> bool:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + GOOD)
        return hang_up(handler)

    stub.act = say_so
    for _ in range(3):
        assert ask(transport) == CAT
    assert stub.connections == 3


def test_deadline_is_for_the_whole_answer(stub: HttpStub, transport: HttpTransport) -> None:
    """Each byte comes well within the timeout, all of them do not."""

    def drip(handler: Handler) -> bool:
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + b" " * 99:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.02)
        return True

    stub.act = drip
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        ask(transport, 1, 0.6)
    assert time.monotonic() - started < 0.9


def test_deadline_is_for_sending_too(stub: HttpStub, transport: HttpTransport) -> None:
    ask(transport, 1, 30)  # a connection with another deadline behind it
    stub.act = lambda handler: time.sleep(2) or False  # nothing is read: the socket's buffers fill up
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        ask(transport, 1, 0.6, image=bytes(50_000_000))
    assert time.monotonic() - started < 0.9


def test_refusal_before_the_body_was_read(stub: HttpStub, transport: HttpTransport) -> None:
    def refuse(handler: Handler) -> bool:
        handler.wfile.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        handler.connection.shutdown(socket.SHUT_WR)
        time.sleep(0.2)
        handler.close_connection = True
        return True

    stub.act = refuse
    with pytest.raises(InvalidImageError, match="no request that large"):
        ask(transport, 1, 5, image=bytes(50_000_000))
    stub.act = lambda handler: False
    assert ask(transport) == CAT


def test_cut_answer(stub: HttpStub, transport: HttpTransport) -> None:
    def cut(handler: Handler) -> bool:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
        return hang_up(handler)

    stub.act = cut
    with pytest.raises(ServerUnavailableError, match="IncompleteRead"):
        ask(transport)


def test_other_protocol(stub: HttpStub, transport: HttpTransport) -> None:
    def speak_http2(handler: Handler) -> bool:
        handler.wfile.write(b"\x00\x00\x18\x04\x00\x00\x00\x00\x00" + b"\x00" * 200 + b"\r\n")
        return hang_up(handler)

    stub.act = speak_http2
    with pytest.raises(ProtocolError, match="does not speak HTTP") as caught:
        ask(transport)
    assert len(str(caught.value)) < 250


def test_close_ends_a_request_in_flight(stub: HttpStub, transport: HttpTransport) -> None:
    ask(transport)  # one that lay idle would be sent again, were it not closed on purpose
    waiting = threading.Event()
    stub.act = lambda handler: waiting.set() or time.sleep(3) or False
    caught: list[Exception] = []

    def wait() -> None:
        try:
            ask(transport, 1, 10)
        except ClassifierError as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(5)
    transport.close()
    thread.join(1)
    assert not thread.is_alive()
    assert [type(error) for error in caught] == [ConnectionFailedError]


def test_close_leaves_no_connection(stub: HttpStub, transport: HttpTransport) -> None:
    ask(transport)
    transport.close()
    assert transport._idle == []
    ask(transport)  # the Classifier above says no; whoever finishes late must not keep one either
    assert transport._idle == []
