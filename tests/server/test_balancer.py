"""HAProxy with deploy's configuration in front of real servers: who is sent to, who waits, and what a kill costs."""

import concurrent.futures
import contextlib
import http.server
import os
import signal
import socket
import threading
import time
import urllib.request

import pytest
from stub_grpc import GrpcStub, serve

from benchmarks.programs import find_program, missing
from benchmarks.resilience.__main__ import not_held
from benchmarks.resilience.balancer import balancer
from benchmarks.resilience.digits import Picture
from benchmarks.resilience.faults import FAULTS, endure, suffer
from benchmarks.resilience.fleet import fleet
from benchmarks.resilience.load import Load
from benchmarks.slow_clients import DATA, DRIP, MESSAGE, OPEN, START, frame
from client import Classifier, ClassifierError, DeadlineExceededError, QueueFullError, ServerNotReadyError

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(find_program("haproxy") is None, reason=missing("haproxy")),
]
SLOW_SENDER_SECONDS = 10  # `timeout http-request` and `wait-for-body`
HALF_A_HEADER = b"POST /v2/models/classifier/infer HTTP/1.1\r\nHost: here\r\n"
THE_REST = b"Inference-Header-Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}"
HALF_A_BODY = HALF_A_HEADER + b"Inference-Header-Content-Length: 100\r\nContent-Length: 1000\r\n\r\n{"


class DeadInside(http.server.BaseHTTPRequestHandler):
    """Behaves as tritonserver with a dead Python process: it is ready, but does not infer."""

    protocol_version = "HTTP/1.1"
    inference = 500

    def do_GET(self):
        self.answer(200)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(self.inference)

    def answer(self, status):
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Stub(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # of connections that come at once: with 5, one too many waits a second, and fails a check


@pytest.fixture
def dead_inside():
    with Stub(("127.0.0.1", 0), DeadInside) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_address[1]}"
        running.shutdown()


@pytest.fixture
def busy():
    """(HTTP's address, gRPC's, their inferences, the event that ends them): both answer the check, and no inference."""
    inferences, done = {"http": [], "grpc": []}, threading.Event()

    class Busy(DeadInside):
        def do_POST(self):
            if b"BM:" not in self.rfile.read(int(self.headers["Content-Length"])):
                inferences["http"].append(time.monotonic())
                done.wait(30)
            self.answer(200)

    stub = GrpcStub()
    stub.act = lambda context: (inferences["grpc"].append(time.monotonic()), done.wait(30))
    grpc_server, port = serve(stub, workers=32)
    with Stub(("127.0.0.1", 0), Busy) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{running.server_address[1]}", f"127.0.0.1:{port}", inferences, done
        done.set()
        running.shutdown()
    grpc_server.stop(0).wait()


@pytest.fixture
def nobody():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    return address


def servers_up(metrics):
    """Names of the HTTP servers that HAProxy sends to."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    start = 'haproxy_server_status{proxy="http",server="'
    return {
        line[len(start) :].split('"')[0] for line in lines if line.startswith(start) and line.endswith('state="UP"} 1')
    }


def connect(address, data):
    host, port = address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=SLOW_SENDER_SECONDS * 2)
    connection.sendall(data)
    return connection


def test_only_who_can_infer_is_sent_to_and_slow_senders_are_ended(server, dead_inside, nobody, encode, tmp_path):
    http_servers = [server.http_url, dead_inside, nobody]
    grpc_servers = [server.grpc_url, nobody, nobody]
    with balancer(http_servers, grpc_servers, tmp_path / "haproxy.log") as front, contextlib.ExitStack() as stack:
        begun = time.monotonic()
        slow = [stack.enter_context(connect(front.http, data)) for data in (HALF_A_HEADER, HALF_A_BODY)]
        slow_grpc = [stack.enter_context(connect(front.grpc, data)) for data in (OPEN + START, MESSAGE + DRIP)]
        for address, protocol in 9 * ((front.http, "http"), (front.grpc, "grpc")):  # at once: no check has failed yet
            with Classifier(address, protocol=protocol, retries=5) as classifier:  # each with a retry budget of its own
                assert classifier.classify(encode("green"), top=1)[0].label == "green"
        while servers_up(front.metrics) != {"s1"}:
            assert time.monotonic() < begun + 15, servers_up(front.metrics)
            time.sleep(0.1)
        for connection in slow:
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        for connection in slow_grpc:
            said = b""
            while b"408 Request Time-out" not in said:
                said += (piece := connection.recv(4096))
                assert piece, said
        assert SLOW_SENDER_SECONDS - 1 < time.monotonic() - begun < SLOW_SENDER_SECONDS + 5


def test_a_full_queue_takes_no_server_out(nobody, tmp_path):
    """A server with a full queue answers 503 to the balancer's check too."""
    checks = []

    class Full(DeadInside):
        inference = 503

        def do_POST(self):
            checks.append(self.path)
            super().do_POST()

    with Stub(("127.0.0.1", 0), Full) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        with balancer([f"127.0.0.1:{running.server_address[1]}"], [nobody], tmp_path / "log") as front:
            end = time.monotonic() + 15
            while len(checks) < 4:  # two that fail take one out
                assert time.monotonic() < end, checks
                time.sleep(0.1)
            assert servers_up(front.metrics) == {"s1"}
        running.shutdown()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_wait_for_a_free_server_is_told_as_one_and_who_has_gone_is_not_sent(busy, protocol, tmp_path):
    http_address, grpc_address, inferences, done = busy
    at_a_server = 16  # maxconn
    with (
        balancer([http_address], [grpc_address], tmp_path / "haproxy.log") as front,
        concurrent.futures.ThreadPoolExecutor(at_a_server) as pool,
        Classifier(front.http if protocol == "http" else front.grpc, protocol=protocol, retries=0) as classifier,
    ):
        held = [pool.submit(classifier.classify, b"x") for _ in range(at_a_server)]
        begun = time.monotonic()
        while len(inferences[protocol]) < at_a_server:
            assert time.monotonic() < begun + 10, len(inferences[protocol])
            time.sleep(0.05)
        with pytest.raises(DeadlineExceededError):
            classifier.classify(b"x", timeout=0.5)
        begun = time.monotonic()
        with pytest.raises(QueueFullError):
            classifier.classify(b"x", timeout=20)
        assert 4 < time.monotonic() - begun < 8
        done.set()
        for each in held:
            with contextlib.suppress(ClassifierError):  # the stub over HTTP answers without a body
                each.result()
        time.sleep(0.5)
        assert len(inferences[protocol]) == at_a_server


def test_a_reload_refuses_nobody(busy, tmp_path):
    """The outgoing process, which has no servers any more, still answers requests over its open connections."""
    http_address, grpc_address, _, done = busy
    done.set()
    log = tmp_path / "haproxy.log"
    with (
        balancer([http_address], [grpc_address], log) as front,
        connect(front.http, HALF_A_HEADER) as over_http,
        connect(front.grpc, OPEN) as over_grpc,
        Classifier(front.grpc, retries=0) as classifier,
    ):
        classifier.classify(b"x")
        end = time.monotonic() + 30
        while "Proxy grpc stopped" not in log.read_text():
            assert time.monotonic() < end, log.read_text()
            os.kill(front.pid, signal.SIGUSR2)  # until it is heard: HAProxy loses one that comes as it starts
            time.sleep(0.5)
        over_http.sendall(THE_REST)
        assert over_http.recv(100).startswith(b"HTTP/1.1 200 ")
        over_grpc.sendall(START + frame(DATA, bytes(5), flags=1, stream=1))
        said = b""
        while b"grpc-status" not in said:
            said += (piece := over_grpc.recv(4096))
            assert piece, said
        assert b"grpc-status\x010" in said, said
        classifier.classify(b"x")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_no_server_at_all_is_not_ready(nobody, protocol, tmp_path):
    with balancer([nobody], [nobody], tmp_path / "haproxy.log") as front:
        end = time.monotonic() + 10
        while servers_up(front.metrics):
            assert time.monotonic() < end
            time.sleep(0.1)
        address = front.http if protocol == "http" else front.grpc
        with Classifier(address, protocol=protocol, retries=0) as classifier, pytest.raises(ServerNotReadyError):
            classifier.classify(b"x")


@pytest.mark.slow
@pytest.mark.parametrize("path", ["balancer", "client"])
def test_kill_9_and_a_freeze_lose_no_request(path, repository_of_processes, encode, tmp_path):
    with contextlib.ExitStack() as stack:
        options = ("--probe-interval", "1", "--probe-timeout", "2")
        members = stack.enter_context(fleet(repository_of_processes, tmp_path, 2, *options))
        addresses = [[member.http for member in members], [member.grpc for member in members]]
        with Classifier(members[0].grpc) as classifier:
            data = [encode(colour) for colour in ("red", "green", "blue")]
            best = [classifier.classify(each, top=1)[0] for each in data]
            pictures = [Picture(each, one.label, one.probability) for each, one in zip(data, best, strict=True)]
        if path == "balancer":
            front = stack.enter_context(balancer(*addresses, tmp_path / "haproxy.log"))
            addresses = [[front.http], [front.grpc]]
        classifiers = [
            stack.enter_context(Classifier(urls, protocol=protocol, timeout=10.0))
            for protocol, urls in zip(("http", "grpc"), addresses, strict=True)
        ]
        for member, fault in zip((*members, members[0]), (FAULTS[0], FAULTS[1], FAULTS[3]), strict=True):
            result = suffer(fault, member, Load(classifiers, pictures, 20.0, 10.0))
            assert result["back_s"] is not None, result
            assert result["restarts"] == 1, result
            assert not result["failed"], result
            assert result["answered_in_time"] == result["sent"] > 100
            assert set(result["left_over"].values()) == {0}, result


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
def test_full_folders_lose_no_request(digits_repository, tmp_path):
    result = endure(digits_repository, tmp_path, FAULTS[4:])
    assert not_held("faults", result) == []
