"""Helpers: send one request to a transport, replace the resolver, freeze a server."""

import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from client import Prediction, Request, Transport

CAT = [Prediction("cät", 1, 0.9)]  # what the stubs answer


def request(
    top: int = 1, timeout: float = 5, image: bytes = b"x", model: str = "m", class_map: bool = False
) -> Request:
    return Request(model, image, top, timeout, "id-1", class_map, queue_timeout=0.3125)


def ask(
    transport: Transport, top: int = 1, timeout: float = 5, image: bytes = b"x", model: str = "m"
) -> Sequence[Prediction]:
    return transport.infer(request(top, timeout, image, model)).predictions


def resolve_to(monkeypatch: pytest.MonkeyPatch, *ports: int, after: float = 0.0) -> None:
    """Make every host name resolve to 127.0.0.1 with each of `ports`, after `after` seconds; numeric addresses, which
    other threads of this process may look up, still resolve to themselves."""
    real = socket.getaddrinfo
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]

    def look_up(host: str, *arguments: Any, flags: int = 0, **options: Any) -> list[Any]:
        if flags & socket.AI_NUMERICHOST or host[:1].isdecimal():
            return real(host, *arguments, flags=flags, **options)
        time.sleep(after)
        return found

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@contextmanager
def frozen(port: int) -> Iterator[None]:
    """Stop (SIGSTOP) the process that listens on `port` for the duration of the body."""
    (pid,) = {c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == psutil.CONN_LISTEN}
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
