"""What carries one image to one server and the answer back."""

import re
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from client._headers import Headers, reader
from client._request import Answer, Request
from client._tls import TLS, TLSLike, as_tls

if TYPE_CHECKING:
    from client._status import ServerStatus

DEFAULT_PORTS = {"grpc": 8001, "http": 8000}
ENCRYPTED = {"grpcs": "grpc", "https": "http"}
LONGEST_TIMEOUT = 1_000_000  # seconds; what waits for a socket counts milliseconds in 31 bits
_PREFIX = re.compile(r"(/(?!v2(/|$))[!-.0-~]+)+")
CONNECT_SECONDS = 2.0  # where another server is left: one that never answers must not take the whole deadline


class Transport(Protocol):
    """Implement these to put something else under a `Classifier`: another protocol, or `client.testing`'s fake."""

    url: str

    def infer(self, request: Request) -> Answer:
        """From any thread, within `request.timeout` seconds. Raises a `ClassifierError`."""

    def status(self, timeout: float) -> "ServerStatus":
        """The server's own account of itself. Raises a `ClassifierError`."""

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """The same for an `AsyncClassifier`. Cancelling the caller must end the request."""

    url: str

    async def infer(self, request: Request) -> Answer: ...

    async def status(self, timeout: float) -> "ServerStatus": ...

    async def close(self) -> None: ...


def parse_address(url: str | None, protocol: str) -> tuple[str, int, bool, str]:
    """``"host"``, ``"host:port"``, ``"grpc://host:port"`` -> host, port, encrypted (``grpcs://``, ``https://``), path.

    The last is where a gateway has the server, over HTTP alone. Raises `ValueError`.
    """
    port = DEFAULT_PORTS[protocol]
    if url is None:
        return "127.0.0.1", port, False, ""
    remedy = f"write host:port, for example 127.0.0.1:{port} or [::1]:{port}"
    if not isinstance(url, str):
        raise ValueError(f"URL {url!r} is not an address; {remedy}")
    try:
        url.encode()  # of a command line it may hold bytes that are no UTF-8
        parts = urlsplit(url if "://" in url else f"{protocol}://{url}")
        encrypted = parts.scheme in ENCRYPTED
        host, port = parts.hostname or "", (443 if encrypted else port) if parts.port is None else parts.port
    except ValueError as error:
        raise ValueError(f"URL {url!r}: {error}; {remedy}") from None
    spoken = ENCRYPTED.get(parts.scheme, parts.scheme)
    if spoken != protocol:
        if spoken in DEFAULT_PORTS:
            other = f"{protocol}s" if encrypted else protocol
            remedy = f"give --protocol {spoken} (in Python protocol={spoken!r}), or write {other}://"
        raise ValueError(f"URL {url!r} is {parts.scheme}, the protocol is {protocol}; {remedy}")
    prefix = parts.path.rstrip("/")
    if prefix and (protocol == "grpc" or not _PREFIX.fullmatch(prefix)):
        remedy += "; a gateway's path may follow over HTTP, without tritonserver's own /v2"
        raise ValueError(f"URL {url!r} is not an address; {remedy}")
    if not host or not port or parts.query or parts.fragment or parts.username or re.search(r"\s", host):
        raise ValueError(f"URL {url!r} is not an address; {remedy}")
    return host, port, encrypted, prefix


def check_timeout(timeout: float) -> float:
    if not isinstance(timeout, Real) or not 0 < timeout <= LONGEST_TIMEOUT:
        remedy = f"give the seconds to wait, more than 0 and at most {LONGEST_TIMEOUT}"
        raise ValueError(f"timeout is {timeout!r}: {remedy}")
    return timeout


def addresses(
    url: str | Sequence[str] | None, protocol: str, tls: TLSLike, headers: Headers = None
) -> list[dict[str, Any]]:
    """The arguments of every server's transport. Raises `ValueError`."""
    if protocol not in tuple(DEFAULT_PORTS):  # a list, of which a dict cannot be asked, is none of them
        raise ValueError(f'protocol is {protocol!r}: choose "grpc" or "http"')
    urls = list(url) if isinstance(url, Iterable) and not isinstance(url, (str, bytes)) else [url]
    if not urls:
        raise ValueError("no URL: give one or more")
    described, sent_with_all = as_tls(tls), reader(headers)
    found = []
    for each in urls:
        host, port, encrypted, prefix = parse_address(each, protocol)
        found.append(
            {
                "host": host,
                "port": port,
                "tls": described or (TLS() if encrypted else None),
                "connect_timeout": CONNECT_SECONDS if len(urls) > 1 else None,
                "headers": sent_with_all,
                **({"prefix": prefix} if protocol == "http" else {}),
            }
        )
    return found


def open_transports(
    url: str | Sequence[str] | None,
    protocol: str,
    tls: TLSLike = None,
    shared_memory_token: str | None = None,
    headers: Headers = None,
) -> list[Transport]:
    """Raises `ValueError` for an unknown protocol, or a malformed URL, token or header. Nothing is sent yet."""
    found = addresses(url, protocol, tls, headers)
    if protocol == "grpc":  # imported here, so that HTTP needs no gRPC and the other way round
        from client._transport_grpc import GrpcTransport

        kind: Any = GrpcTransport
    else:
        from client._transport_http import HttpTransport

        kind = HttpTransport
    if shared_memory_token is None:
        return [kind(**each) for each in found]
    from client._transport_shared import SharedMemoryTransport

    return [SharedMemoryTransport(kind(**each), kind(**each), shared_memory_token) for each in found]


def open_async_transports(
    url: str | Sequence[str] | None,
    protocol: str,
    tls: TLSLike = None,
    shared_memory_token: str | None = None,
    headers: Headers = None,
) -> list[AsyncTransport]:
    """As `open_transports`."""
    found = addresses(url, protocol, tls, headers)
    if protocol == "grpc":
        from client._transport_grpc import AsyncGrpcTransport

        kind: Any = AsyncGrpcTransport
    else:
        from client._async_http import AsyncHttpTransport

        kind = AsyncHttpTransport
    if shared_memory_token is None:
        return [kind(**each) for each in found]
    from client._transport_shared import AsyncSharedMemoryTransport

    return [AsyncSharedMemoryTransport(kind(**each), kind(**each), shared_memory_token) for each in found]
