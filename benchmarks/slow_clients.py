"""tritonserver with clients that never finish a request: how long it keeps them, their cost, and who has to wait.

    python -m benchmarks.slow_clients [--repository model_repository] [--clients 500] [--seconds 20]

Each kind of client connects directly to the server, without the proxies of deploy/, and sends about a byte a second, or
nothing. Meanwhile the canary image is classified repeatedly.
"""

import contextlib
import itertools
import os
import socket
import ssl
import statistics
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.commands import command_parser, positive, whole_number
from benchmarks.harness import other_work_warning, publish, require_server, versions
from benchmarks.resilience.footprint import tritonserver_of
from server import RepositoryError, TritonServer
from server.canary import CanaryError, classify_canary
from server.repository import read_repository

POST = b"POST /v2/models/classifier/infer HTTP/1.1\r\nHost: x\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, data: bytes, flags: int = 0, stream: int = 0) -> bytes:
    """One frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(data))[1:] + struct.pack(">BBI", kind, flags, stream) + data


def header(name: bytes, value: bytes) -> bytes:
    """One field of a header block, neither indexed nor compressed (RFC 7541, section 6.2.2)."""
    return struct.pack("BB", 0, len(name)) + name + struct.pack("B", len(value)) + value


DATA, HEADERS, SETTINGS = 0, 1, 4
OPEN = PREFACE + frame(SETTINGS, b"")
CALL = {
    b":method": b"POST",
    b":scheme": b"http",
    b":path": b"/inference.GRPCInferenceService/ModelInfer",
    b":authority": b"x",
    b"te": b"trailers",
    b"content-type": b"application/grpc",
}
START = frame(HEADERS, b"".join(header(*field) for field in CALL.items()), flags=4, stream=1)  # END_HEADERS
MESSAGE = OPEN + START + frame(DATA, struct.pack(">BI", 0, 1_000_000), stream=1)  # a length without its message
DRIP = frame(DATA, b"\n", stream=1)
KINDS: dict[str, tuple[str, bytes, list[bytes]]] = {  # protocol, first bytes, then a piece each second
    "HTTP, the header a byte a second": ("http", POST + b"X: ", [b"x"]),
    "HTTP, a body of 1 MB a byte a second": ("http", POST + b"Content-Length: 1000000\r\n\r\n{", [b" "]),
    "gRPC, the preface a byte a second": ("grpc", b"", [PREFACE[i : i + 1] for i in range(len(PREFACE))]),
    "gRPC, nothing after the preface": ("grpc", PREFACE, []),
    "gRPC, nothing after the settings": ("grpc", OPEN, []),
    "gRPC, half a header": ("grpc", OPEN + START[:20], []),
    "gRPC, no message after the header": ("grpc", OPEN + START, []),
    "gRPC, one byte of a message": ("grpc", MESSAGE + DRIP, []),
    "gRPC, a message of 1 MB a byte a second": ("grpc", MESSAGE, [DRIP]),
}


class SlowClient:
    """A connection that has sent `first` and sends the next of `pieces` at each `go_on`.

    `closed_after`: seconds until it was noticed that the server had closed it; None if it has not.
    """

    def __init__(self, connection: socket.socket, first: bytes, pieces: Sequence[bytes]) -> None:
        self.connection, self.pieces = connection, itertools.cycle(pieces)
        self.begun = time.monotonic()
        self.closed_after: float | None = None
        connection.sendall(first)
        connection.setblocking(False)

    def go_on(self) -> None:
        if self.closed_after is not None:
            return
        try:
            self.connection.send(next(self.pieces, b""))
            while self.connection.recv(65536):
                pass  # the answer does not matter
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            pass
        self.closed_after = time.monotonic() - self.begun


def canaries(url: str) -> tuple[list[float], int]:
    """Send 30 canaries; returns the milliseconds of those answered, and the number of the others."""
    taken, failed = [], 0
    for _ in range(30):
        begun = time.perf_counter()
        try:
            classify_canary(url, "classifier", 10)
            taken.append((time.perf_counter() - begun) * 1e3)
        except CanaryError:
            failed += 1
    return taken, failed


def measure(server: TritonServer, process: psutil.Process, kind: str, clients: int, seconds: float) -> dict[str, Any]:
    protocol, first, pieces = KINDS[kind]
    host, _, port = (server.http_url if protocol == "http" else server.grpc_url).rpartition(":")
    memory, handles = process.memory_info().rss, process.num_fds()
    taken: list[float] = []
    failed = 0
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection((host, int(port)), 10)) for _ in range(clients)]
        slow = [SlowClient(each, first, pieces) for each in connections]
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            for each in slow:
                each.go_on()
            values, missed = canaries(server.http_url)
            taken, failed = taken + values, failed + missed
            time.sleep(1)
        growth, opened = process.memory_info().rss - memory, process.num_fds() - handles
    return {
        "kind": kind,
        "clients": clients,
        "seconds": seconds,
        "still_connected": sum(each.closed_after is None for each in slow),
        "canary_p50_ms": round(statistics.median(taken), 1) if taken else None,
        "canary_max_ms": round(max(taken), 1) if taken else None,
        "canary_failed": failed,
        "rss_growth_mb": round(growth / 1e6),
        "file_descriptors": opened,
    }


def main() -> None:
    parser = command_parser(__doc__, __spec__)
    parser.add_argument(
        "--repository",
        type=Path,
        default=Path("model_repository"),
        metavar="FOLDER",
        help="model repository to serve (default: model_repository)",
    )
    parser.add_argument(
        "--clients", type=whole_number, default=500, help="slow clients of each kind at a time (default: 500)"
    )
    parser.add_argument("--seconds", type=positive, default=20.0, help="seconds to measure each kind (default: 20)")
    options = parser.parse_args()
    require_server()
    try:
        read_repository(options.repository)
    except RepositoryError as error:
        parser.error(f"--repository: {error}")
    warning = other_work_warning()
    rows = []
    with TritonServer(options.repository, probe_interval=3600) as server:
        process = tritonserver_of(os.getpid())
        assert process is not None  # it is ready
        values, missed = canaries(server.http_url)
        if missed:
            raise SystemExit(f"alone: {missed} canaries were not answered: nothing would be seen of slow clients")
        print(f"alone: canary p50 {statistics.median(values):.1f} ms")
        for kind in KINDS:
            rows.append(measure(server, process, kind, options.clients, options.seconds))
            print(rows[-1], flush=True)
            time.sleep(2)
    publish("slow_clients", versions=versions("nvidia-pytriton"), warning=warning, rows=rows)


if __name__ == "__main__":
    main()
