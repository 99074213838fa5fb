"""The load generator of the comparison with other servers: what counts as an answer, and from when its time does."""

import json
import random
import threading
import time
from collections import Counter
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.serving import load
from benchmarks.serving.load import Request, closed_loop, open_loop
from benchmarks.serving.servers import Running
from loadtest.shapes import Phase, arrivals

PATHS = ("/good", "/bad", "/gone", "/slow")
GOOD, BAD, GONE, SLOW = (Request(path, b"image", {"Content-Type": "image/jpeg"}) for path in PATHS)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert self.rfile.read(int(self.headers["Content-Length"])) == b"image"
        assert self.headers["Content-Type"] == "image/jpeg"
        time.sleep(0.02)
        self.server.asked.append(self.path)
        if self.path == "/slow":
            self.server.ends.wait(10)
        if self.path == "/gone":
            self.close_connection = True
            return
        self.send_response(200 if self.path == "/good" else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server():
    """Takes 20 ms for an answer; /bad is refused, at /gone the connection ends, /slow is answered at the end."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as stub:
        stub.daemon_threads, stub.asked, stub.ends = True, [], threading.Event()
        threading.Thread(target=stub.serve_forever, args=(0.01,), daemon=True).start()
        yield stub
        stub.ends.set()
        stub.shutdown()


def test_each_caller_sends_in_turn_and_good_answers_alone_count(server):
    begun = time.perf_counter()
    row = closed_loop(server.server_port, [GOOD, BAD, GONE], callers=2, seconds=0.5)
    passed = time.perf_counter() - begun
    asked = Counter(server.asked)
    assert row["answers"] == asked["/good"]
    assert row["errors"] == asked["/bad"] + asked["/gone"]
    assert len(asked) == 3
    assert max(asked.values()) - min(asked.values()) <= 2
    assert row["answers"] / passed - 0.01 <= row["images_per_s"] <= row["answers"] / 0.5 + 0.01
    assert row["p50_ms"] >= 20


def test_an_answer_that_is_another_s_is_an_error(server):
    wrong = replace(GOOD, is_right=lambda body: body != b"")
    row = closed_loop(server.server_port, [GOOD, wrong], callers=1, seconds=0.2)
    assert row["answers"] + row["errors"] == len(server.asked)
    assert 0 <= row["answers"] - row["errors"] <= 1
    assert open_loop(server.server_port, [wrong], 50.0, 0.1, seed=3)["answers"] == 0


def test_what_a_server_answers_under_load_is_parsed_once_and_compared():
    right, parsed = [0.1, 0.3, 0.2, 0.15, 0.25], []

    def answer(body):
        parsed.append(body)
        return [{"index": i, "probability": p} for i, p in json.loads(body)]

    best = [[1, 0.3], [4, 0.25], [2, 0.2], [3, 0.15], [0, 0.1]]
    running = Running(1, 1, 0.0, lambda image: Request("/", image), answer)
    is_right = running.checked_request(b"image", right, "fp32").is_right
    body = json.dumps(best).encode()
    assert is_right(body)
    assert is_right(body)
    assert parsed == [body]
    assert is_right(json.dumps([[1, 0.300001], *best[1:]]).encode())  # a batch sums in another order
    for other in ([[1, 0.33], *best[1:]], best[1:], [[1, None], *best[1:]], [[9, 0.3], *best[1:]]):
        assert not is_right(json.dumps(other).encode())
    assert not is_right(b"")


def test_after_a_request_that_took_too_long_the_next_has_another_connection(server, monkeypatch):
    monkeypatch.setattr(load, "TIMEOUT", 1.0)
    caller = load.Caller(server.server_port)
    for request in (SLOW, GOOD):
        caller.call(request, time.perf_counter())
    caller.connection.close()
    assert (caller.errors, len(caller.taken)) == (1, 1)


def test_an_open_loop_s_latency_counts_from_when_a_request_was_due(server, monkeypatch):
    """One connection for a hundred requests a second that take 20 ms each: at the end of 0.4 s one waits 0.4 s."""
    monkeypatch.setattr(load, "SENDERS", 1)
    due = len(list(arrivals([Phase("", 100.0, 0.0, 0.4)], 1.0, random.Random(3))))
    row = open_loop(server.server_port, [GOOD], 100.0, 0.4, seed=3)
    assert row["answers"] == len(server.asked) == due
    assert (row["rate"], row["errors"]) == (100.0, 0)
    assert row["p99_ms"] > 200
    assert row["images_per_s"] <= 50  # of the time until the last answer
