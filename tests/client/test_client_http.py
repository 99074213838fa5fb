"""The HTTP transports, blocking and asyncio, against a server that misbehaves on purpose."""

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asking import CAT, ask
from stub_http import GOOD, Handler, HttpStub, answer, close_unsaid, drip, hang_up, refuse

from client import (
    Answer,
    ClassifierError,
    ConnectionBrokenError,
    DeadlineExceededError,
    InferenceError,
    InvalidImageError,
    ModelNotFoundError,
    ProtocolError,
    QueueFullError,
    Request,
    ServerNotReadyError,
    ServerUnavailableError,
)
from client._address import Address
from client._async_http import AsyncHttpTransport
from client._transport_http import HttpTransport
from client._wire_http import decode_status, refusal


class Blocked:
    """An asyncio transport made blocking, with its own event loop."""

    def __init__(self, address: Address) -> None:
        self.loop, self.transport = asyncio.new_event_loop(), AsyncHttpTransport(address)
        self.url = self.transport.url

    def infer(self, request: Request) -> Answer:
        return self.loop.run_until_complete(self.transport.infer(request))

    def sleep(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def close(self) -> None:
        self.loop.run_until_complete(self.transport.close())
        self.loop.close()


@pytest.fixture(params=[HttpTransport, Blocked], ids=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """connect(host, port, ...) -> a transport that is closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(contextlib.closing(request.param(Address(*arguments))))


@pytest.fixture
def transport(stub: HttpStub, connect: Callable[..., Any]) -> Any:
    return connect("127.0.0.1", stub.server_address[1])


def test_request_and_answer(stub: HttpStub, transport: Any) -> None:
    assert ask(transport, 3, 2.5, image=b"picture", model="a/b c") == CAT
    ((path, header),) = stub.requests
    assert path == "/v2/models/a%2Fb%20c/infer"
    assert json.loads(header) == {
        "id": "id-1",
        "inputs": [{"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 4 + 7}}],
        "outputs": [{"name": "probabilities", "parameters": {"classification": 3, "binary_data": False}}],
        "parameters": {"timeout": 312_500},
    }


def test_image_is_one_string_element(stub: HttpStub, transport: Any) -> None:
    seen = []

    def keep(handler: Handler) -> bool:
        seen.append(handler.rfile.read(int(handler.headers["Content-Length"])))
        return hang_up(handler)

    stub.act = keep
    with pytest.raises(ServerUnavailableError):
        ask(transport, 1, 5, image=b"picture")
    assert seen[0].endswith(b"}" + struct.pack("<I", 7) + b"picture")


def test_connection_that_died_idle_is_replaced(stub: HttpStub, transport: Any) -> None:
    stub.act = close_unsaid
    for _ in range(3):
        assert ask(transport) == CAT
        getattr(transport, "sleep", time.sleep)(0.05)  # in which it is closed
    assert stub.connections == 3
    stub.act = lambda handler: False
    for _ in range(3):
        assert ask(transport) == CAT
    assert stub.connections == 4  # the last is kept


def test_fresh_connection_that_dies_is_not_tried_again(stub: HttpStub, transport: Any) -> None:
    stub.act = hang_up
    with pytest.raises(ServerUnavailableError, match=r"closed connection|disconnected"):
        ask(transport)
    assert stub.connections == 1


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (400, b'{"error": "in ensemble \'m\', not a JPEG"}', InvalidImageError),
        (400, b"{\"error\": \"unexpected inference input 'image' for model 'm'\"}", ProtocolError),
        (400, b"Client sent an HTTP request to an HTTPS server.", ProtocolError),
        (404, b'{"error": "Request for unknown model: \'m\' is not found"}', ModelNotFoundError),
        (404, b"<html>not here</html>", ProtocolError),
        (408, b"", DeadlineExceededError),
        (413, b"", InvalidImageError),
        (429, b"slow down", QueueFullError),
        (500, b'{"error": "it broke"}', InferenceError),
        (500, b'["it broke"]', InferenceError),
        (502, b"\xff\xfe", ConnectionBrokenError),
        (503, b'{"error": "Exceeds maximum queue size"}', QueueFullError),
        (503, b'{"error": "not ready"}', ServerNotReadyError),
        (504, b"", DeadlineExceededError),
        (302, b"", ProtocolError),
        (200, b"not json", ProtocolError),
        (200, b"[" * 100_000, ProtocolError),
        (503, b"[" * 100_000, ServerNotReadyError),
        (200, b"{}", ProtocolError),
        (200, b'{"outputs": []}', ProtocolError),
        (200, b'{"outputs": [{"name": "probabilities", "data": 3}]}', ProtocolError),
    ],
)
def test_statuses(stub: HttpStub, transport: Any, status: int, body: bytes, kind: type[ClassifierError]) -> None:
    stub.status, stub.body = status, body
    with pytest.raises(ClassifierError) as caught:
        ask(transport)
    assert type(caught.value) is kind
    assert transport.url in str(caught.value)


def test_a_proxy_that_wants_tls(stub: HttpStub, transport: Any) -> None:
    """The page that nginx sends."""
    stub.status = 400
    stub.body = b"<html>\r\n<head><title>400 The plain HTTP request was sent to HTTPS port</title></head>\r\n</html>"
    with pytest.raises(
        ProtocolError, match=r"was sent to HTTPS port.*; where it speaks TLS, give --tls or --tls-root "
    ):
        ask(transport)


@pytest.mark.parametrize("body", [b"<html>", b"3", b"[" * 100_000])
def test_a_status_that_is_no_json(body: bytes) -> None:
    answers = [(200, body), (200, b""), (200, b"{}")]
    with pytest.raises(ProtocolError, match=r"is not JSON: check the address \[http://server\]$"):
        decode_status(answers, "http://server", 1)


def test_a_proxy_that_wants_a_certificate() -> None:
    """The page that nginx sends, over TLS."""
    body = b"<html>\r\n<head><title>400 No required SSL certificate was sent</title></head>\r\n</html>"
    error = refusal(400, body, "https://proxy:443", "m", 1)
    assert "; where it wants a client's certificate, give --tls-certificate and --tls-key (in Python tls=)" in str(
        error
    )
    assert "speaks TLS" not in str(error)


@pytest.mark.parametrize(("status", "said"), [(502, "Bad Gateway"), (503, "Service Temporarily Unavailable")])
def test_a_proxys_page_is_told_without_its_tags(stub: HttpStub, transport: Any, status: int, said: str) -> None:
    head = f"<html>\r\n<head><style>\nh1 {{}}\n</style><title>{status} {said}</title></head>\r\n"
    stub.status = status
    stub.body = f"{head}<body>\r\n<h1>{status} {said}</h1>\r\n<hr>nginx {'x' * 999}</body>\r\n</html>\r\n".encode()
    with pytest.raises(ServerUnavailableError, match=rf"\(HTTP {status} {said} nginx x+\.\.\.\)") as caught:
        ask(transport)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (
            504,
            b"<h1>504 Gateway Time-out</h1>\n",
            r"^a proxy did not wait .*\(HTTP 504 Gateway Time-out\): raise",
        ),
        (408, b"", r"^the server, or a proxy .*\(HTTP 408\): raise"),
    ],
)
def test_who_gave_up_early_is_named(stub: HttpStub, transport: Any, status: int, body: bytes, words: str) -> None:
    stub.status, stub.body = status, body
    with pytest.raises(DeadlineExceededError, match=words) as caught:
        ask(transport, 1, 30)
    assert "30 s" not in str(caught.value)


def test_no_server(connect: Callable[..., Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        started = time.monotonic()
        with pytest.raises(ServerUnavailableError, match=r"refused|Connect call failed"):
            ask(connect("127.0.0.1", taken.getsockname()[1]))
        assert time.monotonic() - started < 1


def test_host_that_is_no_name(connect: Callable[..., Any]) -> None:
    with pytest.raises(ServerUnavailableError, match="label"):
        ask(connect("a..b", 1))


def test_silent_server(stub: HttpStub, transport: Any) -> None:
    stub.act = lambda handler: time.sleep(2) or False
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError, match=r"within 0\.6 s"):
        ask(transport, 1, 0.6)
    assert 0.59 < time.monotonic() - started < 1.5
    stub.act = lambda handler: False
    assert ask(transport) == CAT  # on a connection that is not waiting for the old answer


def test_server_may_close_each_connection(stub: HttpStub, transport: Any) -> None:
    stub.act = answer(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + GOOD)
    for _ in range(3):
        assert ask(transport) == CAT
        getattr(transport, "sleep", time.sleep)(0.05)  # in which it is closed
    assert stub.connections == 3


def test_deadline_is_for_the_whole_answer(stub: HttpStub, transport: Any) -> None:
    stub.act = drip
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        ask(transport, 1, 0.6)
    assert time.monotonic() - started < 1.5


def test_deadline_is_for_sending_too(stub: HttpStub, transport: Any) -> None:
    ask(transport, 1, 30)  # a connection with another deadline behind it
    stub.act = lambda handler: time.sleep(2) or False  # nothing is read: the socket's buffers fill up
    started = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        ask(transport, 1, 0.6, image=bytes(50_000_000))
    assert time.monotonic() - started < 1.5


def test_refusal_before_the_body_was_read(stub: HttpStub, transport: Any) -> None:
    stub.act = refuse
    with pytest.raises(InvalidImageError, match="no request that large"):
        ask(transport, 1, 5, image=bytes(50_000_000))
    stub.act = lambda handler: False
    assert ask(transport) == CAT


def test_cut_answer(stub: HttpStub, transport: Any) -> None:
    stub.act = answer(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
    with pytest.raises(ServerUnavailableError, match=r"IncompleteRead|not completed"):
        ask(transport)


def test_a_redirect_is_not_followed(stub: HttpStub, transport: Any) -> None:
    stub.act = answer(b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /other\r\nContent-Length: 0\r\n\r\n")
    with pytest.raises(ProtocolError, match="HTTP 307"):
        ask(transport)


def test_other_protocol(stub: HttpStub, transport: Any) -> None:
    stub.act = answer(b"\x00\x00\x18\x04\x00\x00\x00\x00\x00" + b"\x00" * 200 + b"\r\n")
    with pytest.raises(ProtocolError, match="does not speak HTTP") as caught:
        ask(transport)
    assert len(str(caught.value)) < 250


def test_what_breaks_is_not_sent_again_unasked(stub: HttpStub, transport: Any) -> None:
    """The server closes when the next request has come: that request may have crashed it."""
    ask(transport)
    met: list[Handler] = []
    stub.act = lambda handler: met.append(handler) or hang_up(handler)
    with pytest.raises(
        ConnectionBrokenError, match=r"before the answer .*: where the address is right, .*log says why"
    ):
        ask(transport)
    assert (len(met), stub.connections) == (1, 1)


def test_the_server_is_not_asked_to_compress(stub: HttpStub, transport: Any) -> None:
    encodings = []
    stub.act = lambda handler: encodings.append(handler.headers["Accept-Encoding"]) or False
    ask(transport)
    assert encodings == ["identity"]
