"""gRPC clients that never come to an end, straight at the real server: others are answered, and each is ended."""

import contextlib
import resource
import socket
import threading
import time

import psutil
import pytest

from benchmarks.slow_clients import KINDS, OPEN, START, SlowClient
from client import Classifier, ClassifierError, DeadlineExceededError
from server import TritonServer

pytestmark = pytest.mark.server
SILENT = [name for name, (protocol, _, pieces) in KINDS.items() if protocol == "grpc" and not pieces]
CLIENTS = 40  # of each kind
PING, ACKNOWLEDGE, AGE, GRACE = 2, 2, 10, 2  # seconds, in the place of the server's own 60, 20, 1800, 60
PATIENCE = {
    "grpc-keepalive-time": PING,
    "grpc-keepalive-timeout": ACKNOWLEDGE,
    "grpc-max-connection-age": AGE,
    "grpc-max-connection-age-grace": GRACE,
}


def impatient(repository, seconds):
    return TritonServer(
        repository,
        probe_interval=3600,
        tritonserver_args=[f"--{name}={1000 * value}" for name, value in seconds.items()],
    )


@pytest.fixture(scope="module")
def server(repository):
    with impatient(repository, PATIENCE) as running:
        yield running


@pytest.fixture
def tritonserver(server):
    return psutil.Process(server._process.guard.pid).children()[0]


@pytest.fixture
def classify(server, encode):
    """Over a connection of its own; returns seconds."""

    def run():
        begun = time.monotonic()
        with Classifier(server.grpc_url, retries=0, timeout=10) as classifier:
            assert classifier.classify(encode("lime"), top=1)[0].label == "green"
        return time.monotonic() - begun

    return run


@contextlib.contextmanager
def slow_clients(server, count, kinds):
    host, _, port = server.grpc_url.rpartition(":")
    with contextlib.ExitStack() as stack:
        yield [
            SlowClient(stack.enter_context(socket.create_connection((host, int(port)), 10)), *kind)
            for kind in kinds
            for _ in range(count)
        ]


def wait_until_ended(slow, seconds, meanwhile):
    until = time.monotonic() + seconds
    while any(each.closed_after is None for each in slow):
        assert time.monotonic() < until
        for each in slow:
            each.go_on()
        meanwhile()
        time.sleep(0.2)


def test_who_falls_silent_is_ended_and_nobody_waits(server, tritonserver, classify):
    classify()
    handles, taken = tritonserver.num_fds(), []
    with slow_clients(server, CLIENTS, [KINDS[name][1:] for name in SILENT]) as slow:
        wait_until_ended(slow, 2 * AGE, lambda: taken.append(classify()))
        ended = [each.closed_after for each in slow]
    assert PING < min(ended) <= max(ended) < 0.9 * AGE  # by the ping; age varies by a tenth
    assert max(taken) < 2.0
    assert tritonserver.num_fds() <= handles + 5
    assert classify() < 2.0
    assert server.restarts == 0


def test_a_byte_now_and_then_is_ended_by_its_age(server, tritonserver, classify):
    handles, memory, taken = tritonserver.num_fds(), tritonserver.memory_info().rss, []
    dripping = [KINDS["gRPC, a message of 1 MB a byte a second"][1:]]
    with slow_clients(server, CLIENTS, dripping) as slow:
        wait_until_ended(slow, 2 * AGE, lambda: taken.append(classify()))
        ended = [each.closed_after for each in slow]
        assert tritonserver.memory_info().rss < memory + 20e6  # not the megabyte that each announced
    assert 0.9 * AGE < min(ended) <= max(ended) < 1.1 * AGE + GRACE + 2
    assert max(taken) < 2.0
    assert tritonserver.num_fds() <= handles + 5
    assert server.restarts == 0


def test_more_than_it_has_descriptors_for(server, tritonserver, classify, encode):
    """Connected clients are answered; others wait until the silent connections are closed."""
    before = resource.prlimit(tritonserver.pid, resource.RLIMIT_NOFILE)
    with Classifier(server.grpc_url, retries=0) as connected:
        assert connected.classify(encode("lime"), top=1)[0].label == "green"
        full = tritonserver.num_fds() + CLIENTS
        resource.prlimit(tritonserver.pid, resource.RLIMIT_NOFILE, (full, before[1]))
        try:
            with slow_clients(server, 2 * CLIENTS, [(OPEN + START, [])]):
                while tritonserver.num_fds() < full:
                    time.sleep(0.05)
                assert connected.classify(encode("lime"), top=1)[0].label == "green"
                with Classifier(server.grpc_url, retries=0, timeout=1) as late, pytest.raises(DeadlineExceededError):
                    late.classify(encode("lime"))
                with Classifier(server.grpc_url, retries=100, timeout=30) as patient:
                    assert patient.classify(encode("lime"), top=1)[0].label == "green"
        finally:
            resource.prlimit(tritonserver.pid, resource.RLIMIT_NOFILE, before)
    assert classify() < 2.0
    assert server.restarts == 0


def test_no_request_is_lost_when_a_connection_comes_of_age(repository, encode):
    """Ten connections, one after the other, each with eight requests in flight when it is told to go."""
    answered, failed = [], []
    with (
        impatient(repository, {"grpc-max-connection-age": 1}) as server,
        Classifier(server.grpc_url, retries=0, timeout=10) as classifier,
    ):
        until = time.monotonic() + 10

        def ask():
            while time.monotonic() < until:
                try:
                    answered.append(classifier.classify(encode("lime"), top=1)[0].label)
                except ClassifierError as error:
                    failed.append(error)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert failed == []
    assert set(answered) == {"green"}
    assert len(answered) > 500
