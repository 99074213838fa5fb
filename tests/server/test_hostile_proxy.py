"""deploy/haproxy/haproxy.cfg in front of servers: what would end one is refused, or ends one alone; pictures pass."""

import http.client
import http.server
import json
import re
import socket
import socketserver
import threading

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from benchmarks.fuzz.http_message import INFER, binary, dump, inference, message
from benchmarks.fuzz.images import good
from benchmarks.fuzz.lethal import CLAIM, INPUTS, in_chunks
from benchmarks.fuzz.wire import send_http
from benchmarks.programs import find_program, missing
from benchmarks.resilience.balancer import balancer
from benchmarks.slow_clients import OPEN

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(find_program("haproxy") is None, reason=missing("haproxy")),
]
LENGTH = "Inference-Header-Content-Length"
DEEP = b"[" * 200_000
SPELT_OTHERWISE = dump(CLAIM).replace(b'"data"', rb'"d\u0061ta" ')
HIDDEN = {
    "deep JSON, two lengths": message(DEEP, [(LENGTH, "200000"), (LENGTH, "10")]),
    "deep JSON, two lengths in one": message(DEEP, {LENGTH: "200000, 10"}),
    "deep JSON, to another path": message(DEEP, {LENGTH: "10"}, path="/v2/models/classifier/generate"),
    "chunks": in_chunks(100_000),
    "chunks and no POST": in_chunks(100_000, method="GET"),
    "a claimed shape in the JSON before a tensor": binary(CLAIM, b"\0" * 8),
    "a claimed shape, data spelt otherwise": message(SPELT_OTHERWISE, {LENGTH: str(len(SPELT_OTHERWISE))}),
}


@pytest.fixture(scope="module")
def proxy(server, tmp_path_factory):
    log = tmp_path_factory.mktemp("haproxy") / "log"
    with balancer([server.http_url], [server.grpc_url], log) as front:
        yield front.http


@pytest.mark.parametrize(
    "request_bytes",
    [*(INPUTS[name] for name in INPUTS if not name.startswith("a body")), *HIDDEN.values()],
    ids=[*(name for name in INPUTS if not name.startswith("a body")), *HIDDEN],
)
def test_what_ends_tritonserver_is_refused(server, proxy, request_bytes):
    assert re.match("HTTP 4", send_http(proxy, request_bytes))
    assert server.restarts == 0


FORM = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl and urllib have it unless told


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_form_of_a_photograph_s_size_ends_no_server(server, proxy, method):
    """Its body lies twice on the stack of a thread of tritonserver's."""
    request = message(b"\0" * 20_000_000, {**FORM, LENGTH: "100"}, method=method)
    for address in (server.http_url, proxy):
        assert re.match("HTTP [245]", send_http(address, request))  # and not a connection that broke
    assert server.restarts == 0


def test_a_body_too_large_is_refused_before_it_is_sent(proxy):
    assert send_http(proxy, message(b"", {"Content-Length": "200000000", LENGTH: "100"})) == "HTTP 413"


def test_http_2_needs_no_length_and_is_no_way_around(proxy):
    host, port = proxy.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(OPEN)
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")


def test_pictures_and_questions_pass(proxy):
    assert send_http(proxy, binary(*inference(good()["JPEG large"]))) == "HTTP 200"
    assert send_http(proxy, binary(*inference(good()["JPEG"] + b'{"data": []}'))) == "HTTP 200"  # a picture may say so
    assert send_http(proxy, message(b"", method="GET", path="/v2/models/classifier/stats")) == "HTTP 200"
    assert send_http(proxy, message(dump({}), path=INFER)) == "HTTP 400"


def test_grpc_takes_one_message_of_bounded_size(server, tmp_path):
    """A stream, or a message that no buffer holds, could keep a server's place for as long as its sender likes."""
    with (
        balancer([server.http_url], [server.grpc_url], tmp_path / "log") as front,
        grpc.insecure_channel(front.grpc) as channel,
    ):
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = service_pb2.ModelInferRequest(model_name="classifier", raw_input_contents=[b"\0" * 22_020_096])
        with pytest.raises(grpc.RpcError, match=r"larger than max \(22020096 bytes\): send a smaller image"):
            stub.ModelInfer(request, timeout=10)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.ModelStreamInfer(iter([service_pb2.ModelInferRequest()]), timeout=10))
        assert caught.value.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.CANCELLED)
        assert stub.ServerReady(service_pb2.ServerReadyRequest(), timeout=10).ready


class Fragile(http.server.BaseHTTPRequestHandler):
    """Well to the check; any other inference ends the connection, as one that ends the server does."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        if LENGTH in self.headers:
            self.server.ended.append(self.path)
            self.close_connection = True
        else:
            self.answer()

    def answer(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True


def test_what_ends_one_server_is_not_sent_to_the_next(tmp_path):
    ended = []
    servers = [Server(("127.0.0.1", 0), Fragile) for _ in range(3)]
    for each in servers:
        each.ended = ended
        threading.Thread(target=each.serve_forever, daemon=True).start()
    addresses = [f"127.0.0.1:{each.server_address[1]}" for each in servers]
    try:
        with balancer(addresses, addresses, tmp_path / "log") as front:
            assert send_http(front.http, binary(*inference(good()["PNG"]))).startswith("finding: HTTP 502")
    finally:
        for each in servers:
            each.shutdown()
            each.server_close()
    assert ended == [INFER]


def test_a_refusal_names_the_value_and_the_remedy(proxy):
    host, port = proxy.split(":")
    for headers, path, said in (
        ({"Content-Encoding": 'br"'}, INFER, 'Content-Encoding br" is not taken: send the body as it is'),
        ({}, INFER, f'{LENGTH} is "", not one number up to 9999: send tensors as binary data'),
        ({}, "/v2/logging", "/v2/logging is not an inference: ask a server itself"),
    ):
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        connection.request("POST", path, b"{}", headers)
        assert json.loads(connection.getresponse().read())["error"] == said
        connection.close()
