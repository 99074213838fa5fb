"""deploy/proxy/nginx.conf before the real server: what would end it is refused or made harmless."""

import contextlib
import http.client
import socket

import psutil
import pytest

from benchmarks.fuzz.http_message import message
from benchmarks.fuzz.lethal import INPUTS
from benchmarks.programs import find_program, missing

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(find_program("nginx") is None, reason=missing("nginx")),
]
LENGTH = "Inference-Header-Content-Length"
CHUNKS = INPUTS["200,000 chunks"].partition(b"\r\n\r\n")[2]


@pytest.fixture
def tritonserver(secured_server):
    return psutil.Process(secured_server._process.guard.pid).children()[0]


def send(proxy, context, request):
    """The answer's status and what it says; to the end, so that nothing is left unread."""
    with (
        socket.create_connection(("127.0.0.1", proxy.port), 30) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as connection,
        contextlib.closing(http.client.HTTPResponse(connection)) as response,
    ):
        with contextlib.suppress(OSError):  # refused before it was all sent
            connection.sendall(request)
        response.begin()
        return response.status, response.read().decode()


@pytest.mark.parametrize(
    ("status", "request_bytes"),
    [
        (400, INPUTS["JSON 200,000 levels deep"]),
        (400, message(b"[" * 200_000, [(LENGTH, "200000"), (LENGTH, "10")])),
        (500, message(b"[" * 200_000, [(LENGTH, "10"), (LENGTH, "200000")])),  # no JSON, says tritonserver
        (500, message(CHUNKS, {"Transfer-Encoding": "chunked", LENGTH: "10"})),
        (415, INPUTS["gzip of 100 MB, refused"]),
        (415, message(b"", {"Content-Encoding": "deflate"}, method="GET", path="/v2")),
        (413, message(b"", {"Content-Length": "200000000", LENGTH: "100"})),
    ],
    ids=["deep JSON", "the first length", "the second length", "chunks", "gzip", "deflate", "large"],
)
def test_what_ends_tritonserver_is_refused_or_made_harmless(
    secured_server, proxy, trusted, tritonserver, status, request_bytes
):
    memory = tritonserver.memory_info().rss
    found, text = send(proxy, trusted, request_bytes)
    assert found == status, text
    assert secured_server.restarts == 0
    assert tritonserver.memory_info().rss < memory + 20e6


def test_a_refusal_names_the_value_and_the_remedy(proxy, trusted):
    _, text = send(proxy, trusted, message(b"{}", {"Content-Encoding": "br"}))
    assert text == '{"error":"Content-Encoding br is not taken: send the body as it is"}'
    _, text = send(proxy, trusted, message(b"{}"))
    assert (
        text == '{"error":"Inference-Header-Content-Length is not one number up to 9999: send tensors as binary data"}'
    )
