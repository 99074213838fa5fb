"""Inputs over HTTP that end tritonserver 2.51.0 or make it leak memory, each tried on its own server.

The main run stays below these limits. The supervisor restarts a server that one of them has ended.
"""

import contextlib
import gzip
import time
from pathlib import Path
from typing import Any

from benchmarks.fuzz.http_message import dump, message
from benchmarks.fuzz.images import good
from benchmarks.fuzz.watch import ask, resident_mib
from benchmarks.fuzz.wire import send_http

UNTIL_IT_ENDS = 20.0  # seconds that the server is given for a chunked body, which has no length


def in_chunks(count: int, method: str = "POST") -> bytes:
    """A body of `count` chunks of one byte."""
    body = b"1\r\n[\r\n" * count + b"0\r\n\r\n"
    return message(body, {"Transfer-Encoding": "chunked"}, method=method)


CLAIM = {"inputs": [{"name": "image", "shape": [1, 2**40], "datatype": "FP32", "data": []}]}
INPUTS: dict[str, bytes] = {
    "JSON 1,600,000 levels deep": message(b"[" * 1_600_000),
    "a body in 800,000 chunks": in_chunks(800_000),
    "JSON data of a claimed shape of 2^40": message(dump(CLAIM)),
    "gzip of 100 MB, refused": message(gzip.compress(bytes(100_000_000)), {"Content-Encoding": "gzip"}),
    "100 gzip bodies cut off, refused": message(gzip.compress(bytes(10_000))[:-9], {"Content-Encoding": "gzip"}),
    "a body of 200 MB, refused": message(bytes(200_000_000)),
}


def is_right(server: Any, expected: Any) -> bool:
    with contextlib.suppress(Exception):  # restarting
        return server.ready and bool((ask(server, good()["PNG"], "grpc") == expected).all())
    return False


def try_input(repository: Path, name: str) -> dict[str, Any]:
    """Return what happened. Raises `AssertionError` unless the server answers correctly again within a minute."""
    from server import TritonServer

    events: list[str] = []
    with TritonServer(repository, on_event=events.append) as server:
        expected, before = ask(server, good()["PNG"], "grpc"), resident_mib(server)
        begun = time.perf_counter()
        for _ in range(100 if name.startswith("100 ") else 1):
            outcome = send_http(server.http_url, INPUTS[name], UNTIL_IT_ENDS)
        deadline = begun + 60
        time.sleep(1.5)  # until the supervisor has seen it
        while not is_right(server, expected):
            if time.perf_counter() > deadline:
                raise AssertionError(f"{name}: the server is not back after a minute")
            time.sleep(0.1)
        back = round(time.perf_counter() - begun, 1) if server.restarts else None
        growth = None if server.restarts else round(resident_mib(server)[0] - before[0])
    return {
        "input": name,
        "bytes": len(INPUTS[name]),
        "outcome": outcome,
        "events": events,
        "back_s": back,
        "grew_mib": growth,
    }
