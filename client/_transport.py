"""What carries one image to the server and the answer back."""

import math
from typing import Protocol
from urllib.parse import urlsplit

INPUT, OUTPUT = "image", "probabilities"
DEFAULT_PORTS = {"grpc": 8001, "http": 8000}


class Transport(Protocol):
    """Implement these two to put something else under a `Classifier`: a fake in a test, another protocol."""

    def infer(self, model: str, image: bytes, top: int, timeout: float) -> list[str]:
        """Encoded image -> the `top` best classes as ``"probability:index:label"``, from any thread.

        `timeout` is in seconds. Raises a `ClassifierError`.
        """

    def close(self) -> None: ...


def parse_address(url: str | None, protocol: str) -> tuple[str, int]:
    """``"host"``, ``"host:port"`` or ``"grpc://host:port"`` (``"http://..."``) -> host, port. Raises `ValueError`."""
    port = DEFAULT_PORTS[protocol]
    if url is None:
        return "127.0.0.1", port
    remedy = f"write host:port, for example 127.0.0.1:{port}"
    try:
        parts = urlsplit(url if "://" in url else f"{protocol}://{url}")
        host, port = parts.hostname or "", parts.port or port
    except ValueError as error:
        raise ValueError(f"URL {url!r}: {error}; {remedy}") from None
    if parts.scheme != protocol:
        raise ValueError(f"URL {url!r} is {parts.scheme}, the protocol is {protocol}; {remedy}")
    if not host or parts.path.strip("/") or parts.query or parts.username:
        raise ValueError(f"URL {url!r} is not an address; {remedy}")
    return host, port


def check_timeout(timeout: float) -> float:
    if not (timeout > 0 and math.isfinite(timeout)):
        raise ValueError(f"timeout is {timeout}: give the seconds to wait, more than 0")
    return timeout


def queue_timeout(timeout: float) -> int:
    """Microseconds that a request may wait in a step's queue: half its time, so that what leaves it can be answered."""
    return max(1, int(timeout * 0.5e6))


def open_transport(url: str | None, protocol: str) -> Transport:
    """Raises `ValueError` for an unknown protocol or a URL that is none. Nothing is sent yet."""
    if protocol not in DEFAULT_PORTS:
        raise ValueError(f'protocol is {protocol!r}: choose "grpc" or "http"')
    host, port = parse_address(url, protocol)
    if protocol == "grpc":  # imported here, so that HTTP needs no gRPC and the other way round
        from client._transport_grpc import GrpcTransport

        return GrpcTransport(host, port)
    from client._transport_http import HttpTransport

    return HttpTransport(host, port)
