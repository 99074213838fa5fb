"""HAProxy as deploy/haproxy/haproxy.cfg sets it up, in front of servers on this machine."""

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import ROOT
from benchmarks.programs import find_program, missing
from server.endpoints import free_ports

CONFIG = ROOT / "deploy/haproxy/haproxy.cfg"


@dataclass(frozen=True)
class Balancer:
    http: str
    grpc: str
    metrics: str
    pid: int


def environment(http: Sequence[str], grpc: Sequence[str], **bind: str) -> dict[str, str]:
    """The variables that the configuration reads: the servers' addresses, and bind_http, bind_grpc, bind_metrics."""
    values = {f"WIDEFIELD_{name.upper()}": address for name, address in bind.items()}
    for number, (one, two) in enumerate(zip(http, grpc, strict=True), start=1):
        values |= {f"WIDEFIELD_HTTP_{number}": one, f"WIDEFIELD_GRPC_{number}": two}
    return values


@contextlib.contextmanager
def balancer(
    http: Sequence[str], grpc: Sequence[str], log: Path, seconds: float = 20.0, config: Path = CONFIG, **variables: str
) -> Iterator[Balancer]:
    """Run HAProxy in front of these servers, host:port each, inside the block. `variables`: further ones of the
    configuration. Raises `OSError` if HAProxy is not installed or does not start.
    """
    program = find_program("haproxy")
    if program is None:
        raise OSError(missing("haproxy"))
    addresses = [f"127.0.0.1:{port}" for port in free_ports(["127.0.0.1"] * 3)]
    bind = dict(zip(("bind_http", "bind_grpc", "bind_metrics"), addresses, strict=True))
    with log.open("ab") as output:
        process = subprocess.Popen(
            [program, "-W", "-db", "-f", str(config)],
            env={**os.environ, **environment(http, grpc, **bind), **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _await_port(process, addresses[0], log, seconds)
        yield Balancer(addresses[0], addresses[1], addresses[2], process.pid)
    finally:
        process.terminate()  # its worker ends with it, as it would not on SIGKILL
        process.wait()


def _await_port(process: subprocess.Popen[bytes], address: str, log: Path, seconds: float) -> None:
    host, port = address.split(":")
    end = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1):
            return
        time.sleep(0.05)
    raise OSError(f"haproxy does not listen on {address}: {log.read_text(errors='replace')[-500:]}")
