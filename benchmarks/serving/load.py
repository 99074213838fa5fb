"""One load generator for every server: HTTP/1.1 over kept-alive connections, each caller with its own."""

import http.client
import queue
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from benchmarks.latency import percentiles
from loadtest.shapes import Phase, arrivals

CALLERS = (1, 8, 32)  # of closed loops
SENDERS = 128  # at most so many requests in flight; a further one waits, and its latency includes that
TIMEOUT = 30.0


@dataclass(frozen=True)
class Request:
    """A POST. `is_right` tells from the body whether an answer is right."""

    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    is_right: Callable[[bytes], bool] = lambda body: True


def send(port: int, request: Request, timeout: float = TIMEOUT) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        return exchange(connection, request)
    finally:
        connection.close()


def exchange(connection: http.client.HTTPConnection, request: Request) -> tuple[int, bytes]:
    connection.request("POST", request.path, request.body, request.headers)
    response = connection.getresponse()
    return response.status, response.read()


class Caller:
    """One connection; notes the seconds of each right answer, and counts everything else as errors."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        self.taken: list[float] = []
        self.errors = 0

    def call(self, request: Request, since: float) -> None:
        try:
            status, body = exchange(self.connection, request)
        except (OSError, http.client.HTTPException):
            status, body = 0, b""
            self.connection.close()  # connects again at the next call
        taken = time.perf_counter() - since
        if status == 200 and request.is_right(body):
            self.taken.append(taken)
        else:
            self.errors += 1


def closed_loop(port: int, requests: list[Request], callers: int, seconds: float) -> dict[str, Any]:
    """Each caller sends the next image when it has its answer. Answers that come after `seconds` count, with the time
    until the last one."""
    end = time.perf_counter() + seconds

    def run(number: int) -> Caller:
        caller = Caller(port)
        turn = number
        while (now := time.perf_counter()) < end:
            caller.call(requests[turn % len(requests)], now)
            turn += 1
        caller.connection.close()
        return caller

    begun = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        done = list(pool.map(run, range(callers)))
    return summary(done, time.perf_counter() - begun)


def open_loop(port: int, requests: list[Request], rate: float, seconds: float, seed: int) -> dict[str, Any]:
    """Send requests at a set rate, whether or not earlier ones are answered. A latency counts from the due time."""
    due: queue.SimpleQueue[tuple[float, Request] | None] = queue.SimpleQueue()
    callers = [Caller(port) for _ in range(SENDERS)]

    def run(caller: Caller) -> None:
        while (work := due.get()) is not None:
            caller.call(work[1], work[0])
        caller.connection.close()

    threads = [threading.Thread(target=run, args=(caller,)) for caller in callers]
    for thread in threads:
        thread.start()
    begun, late = time.perf_counter(), 0.0
    phases = [Phase("open loop", rate, 0.0, seconds)]
    for number, offset in enumerate(arrivals(phases, 1.0, random.Random(seed))):
        time.sleep(max(0.0, begun + offset - time.perf_counter()))
        late = max(late, time.perf_counter() - begun - offset)
        due.put((begun + offset, requests[number % len(requests)]))
    for _ in threads:
        due.put(None)
    for thread in threads:
        thread.join()
    passed = max(seconds, time.perf_counter() - begun)
    return {"rate": round(rate, 2), "sender_late_ms": round(late * 1e3, 1), **summary(callers, passed)}


def summary(callers: list[Caller], seconds: float) -> dict[str, Any]:
    taken = [value for caller in callers for value in caller.taken]
    return {
        "answers": len(taken),
        "errors": sum(caller.errors for caller in callers),
        "images_per_s": round(len(taken) / seconds, 2),
        **percentiles(taken),
    }
