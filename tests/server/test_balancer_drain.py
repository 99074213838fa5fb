"""HAProxy's own socket: a server goes out and comes back, and no client notices."""

import contextlib
import csv
import socket
import time

import pytest

from benchmarks.programs import find_program, missing
from benchmarks.resilience.balancer import balancer
from benchmarks.resilience.digits import Picture
from benchmarks.resilience.fleet import fleet
from benchmarks.resilience.load import Load
from client import Classifier

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(find_program("haproxy") is None, reason=missing("haproxy")),
]


def say(path, command):
    """Send a command to HAProxy's own socket; return its answer."""
    with socket.socket(socket.AF_UNIX) as connection, connection.makefile() as answer:
        connection.connect(str(path))
        connection.sendall(f"{command}\n".encode())
        return answer.read().strip()


def states(path, number):
    """Return the states of a server over HTTP and gRPC, in HAProxy's words."""
    rows = csv.DictReader(say(path, "show stat").lstrip("# ").splitlines())
    return [row["status"] for row in rows if row["svname"] == f"s{number}"]


def test_a_server_that_is_drained_stops_and_starts_unnoticed(repository, encode, tmp_path):
    """Clients that never send again, one over each protocol, notice nothing."""
    with contextlib.ExitStack() as stack:
        members = stack.enter_context(fleet(repository, tmp_path, 2))
        addresses = [[member.http for member in members], [member.grpc for member in members]]
        with Classifier(members[0].grpc) as classifier:
            data = encode("green")
            (best,) = classifier.classify(data, top=1)
        path = tmp_path / "haproxy.sock"
        front = stack.enter_context(balancer(*addresses, tmp_path / "haproxy.log", WIDEFIELD_SOCKET=str(path)))
        classifiers = [
            stack.enter_context(Classifier(url, protocol=protocol, timeout=10.0, retries=0))
            for protocol, url in (("http", front.http), ("grpc", front.grpc))
        ]
        with Load(classifiers, [Picture(data, best.label, best.probability)], 20.0, 10.0) as load:
            for number, member in enumerate(members, start=1):
                time.sleep(1)
                assert say(path, f"set server http/s{number} state drain") == ""
                assert states(path, number) == ["DRAIN", "DRAIN"]
                member.stop()
                member.start_again()
                assert say(path, f"set server http/s{number} state ready") == ""
                while states(path, number) != ["UP", "UP"]:
                    time.sleep(0.1)
            time.sleep(1)
    assert load.summary()["failed"] == {}
    assert load.sent > 100
