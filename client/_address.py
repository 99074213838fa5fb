"""The servers' addresses, and how to connect to each."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from client._headers import Headers, reader
from client._tls import TLS, TLSLike, as_tls

DEFAULT_PORTS = {"grpc": 8001, "http": 8000}
ENCRYPTED = {"grpcs": "grpc", "https": "http"}
_PREFIX = re.compile(r"(/(?!v2(/|$))[!-.0-~]+)+")
CONNECT_SECONDS = 2.0  # with several servers: one that never answers must not use up the whole deadline


@dataclass(frozen=True)
class Address:
    """The address of one server, and how to connect to it.

    Attributes:
        tls: None: not encrypted.
        connect_timeout: the seconds that connecting may take; None: as long as the request may.
        prefix: the path of the server behind a gateway; HTTP only.
        headers: returns the headers of the next request.
    """

    host: str
    port: int
    tls: TLS | None = None
    connect_timeout: float | None = None
    prefix: str = ""
    headers: Callable[[], dict[str, str]] = dict

    @property
    def target(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def url(self, protocol: str) -> str:
        return f"{protocol}{'s' if self.tls else ''}://{self.target}{self.prefix}"


def parse_address(url: str | None, protocol: str) -> tuple[str, int, bool, str]:
    """Split ``"host"``, ``"host:port"`` or ``"grpc://host:port"`` into host, port, encrypted and path.

    ``grpcs://`` and ``https://`` mean encrypted; the path is a gateway's, HTTP only. Raises `ValueError`.
    """
    port = DEFAULT_PORTS[protocol]
    if url is None:
        return "127.0.0.1", port, False, ""
    remedy = f"write host:port, for example 127.0.0.1:{port} or [::1]:{port}"
    if not isinstance(url, str):
        raise ValueError(f"URL {url!r} is not an address; {remedy}")
    try:
        url.encode()  # a command line may hold bytes that are not UTF-8
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


def addresses(url: str | Sequence[str] | None, protocol: str, tls: TLSLike, headers: Headers = None) -> list[Address]:
    """Return the address of each server in `url`. Raises `ValueError`."""
    if protocol not in tuple(DEFAULT_PORTS):  # a dict would raise TypeError for an unhashable protocol
        raise ValueError(f'protocol is {protocol!r}: choose "grpc" or "http"')
    urls = list(url) if isinstance(url, Iterable) and not isinstance(url, (str, bytes)) else [url]
    if not urls:
        raise ValueError("no URL: give one or more")
    described, sent_with_all = as_tls(tls), reader(headers)
    patience = CONNECT_SECONDS if len(urls) > 1 else None
    found = []
    for each in urls:
        host, port, encrypted, prefix = parse_address(each, protocol)
        secure = described or (TLS() if encrypted else None)
        found.append(Address(host, port, secure, patience, prefix, sent_with_all))
    return found
