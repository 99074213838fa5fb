"""What tritonserver does with clients that never come to an end: how long it keeps them, what they cost, who waits.

    python -m benchmarks.slow_clients [--repository model_repository] [--clients 500] [--seconds 20]

Each kind opens its connections straight to the server, without the proxy of deploy/proxy, and says a byte a second.
Meanwhile the canary image is classified again and again.
"""

import argparse
import itertools
import os
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import load_average_warning, versions, write_results
from benchmarks.resilience.footprint import tritonserver_of
from server import TritonServer
from server.canary import CanaryError, classify_canary

POST = b"POST /v2/models/classifier/infer HTTP/1.1\r\nHost: x\r\n"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
KINDS: dict[str, tuple[str, bytes, bytes]] = {  # protocol, said at once, then a byte of it a second
    "HTTP, the header a byte a second": ("http", POST + b"X: ", b"x"),
    "HTTP, a body of 1 MB a byte a second": ("http", POST + b"Content-Length: 1000000\r\n\r\n{", b" "),
    "gRPC, the preface a byte a second": ("grpc", PREFACE[:1], PREFACE[1:]),
    "gRPC, nothing after the preface": ("grpc", PREFACE, b""),
}


def canaries(url: str, count: int = 30) -> tuple[list[float], int]:
    """Milliseconds of each that was answered; how many were not."""
    taken, failed = [], 0
    for _ in range(count):
        begun = time.perf_counter()
        try:
            classify_canary(url, "classifier", 10)
            taken.append((time.perf_counter() - begun) * 1e3)
        except CanaryError:
            failed += 1
    return taken, failed


def measure(server: TritonServer, process: psutil.Process, kind: str, clients: int, seconds: float) -> dict[str, Any]:
    protocol, first, drip = KINDS[kind]
    host, _, port = (server.http_url if protocol == "http" else server.grpc_url).rpartition(":")
    memory, handles = process.memory_info().rss, process.num_fds()
    connections = [socket.create_connection((host, int(port)), 10) for _ in range(clients)]
    taken: list[float] = []
    failed = 0
    try:
        for each in connections:
            each.sendall(first)
            each.setblocking(False)
        still, pieces = list(connections), itertools.cycle(drip[i : i + 1] for i in range(len(drip)))
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            piece = next(pieces) if drip else b""
            for each in list(still):
                try:
                    each.send(piece)
                    if not each.recv(4096):
                        still.remove(each)
                except BlockingIOError:
                    pass
                except OSError:
                    still.remove(each)
            values, missed = canaries(server.http_url)
            taken, failed = taken + values, failed + missed
            time.sleep(1)
        growth, opened = process.memory_info().rss - memory, process.num_fds() - handles
    finally:
        for each in connections:
            each.close()
    return {
        "kind": kind,
        "clients": clients,
        "seconds": seconds,
        "still_connected": len(still),
        "canary_p50_ms": round(statistics.median(taken), 1),
        "canary_max_ms": round(max(taken), 1),
        "canary_failed": failed,
        "rss_growth_mb": round(growth / 1e6),
        "file_descriptors": opened,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    warning = load_average_warning()
    rows = []
    with TritonServer(options.repository, probe_interval=3600) as server:
        process = tritonserver_of(os.getpid())
        assert process is not None  # it has just said ready
        values, _ = canaries(server.http_url)
        print(f"alone: canary p50 {statistics.median(values):.1f} ms")
        for kind in KINDS:
            rows.append(measure(server, process, kind, options.clients, options.seconds))
            print(rows[-1], flush=True)
            time.sleep(2)
    path = write_results("slow_clients", versions=versions("nvidia-pytriton"), warning=warning, rows=rows)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
