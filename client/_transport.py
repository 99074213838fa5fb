"""The interface of what carries one image to one server and the answer back."""

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol

from client._address import addresses
from client._headers import Headers
from client._request import Answer, Request
from client._tls import TLSLike

if TYPE_CHECKING:
    from client._status import ServerStatus

LONGEST_TIMEOUT = 1_000_000  # seconds; poll counts milliseconds in 31 bits


class Transport(Protocol):
    """The interface to implement for another protocol under a `Classifier`, or for a fake (see `client.testing`)."""

    url: str

    def infer(self, request: Request) -> Answer:
        """Return the answer within `request.timeout` seconds; thread-safe. Raises a `ClassifierError`."""

    def status(self, timeout: float) -> "ServerStatus":
        """Return the server's status within `timeout` seconds. Raises a `ClassifierError`."""

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """`Transport` for an `AsyncClassifier`. Cancelling the caller must end the request."""

    url: str

    async def infer(self, request: Request) -> Answer: ...

    async def status(self, timeout: float) -> "ServerStatus": ...

    async def close(self) -> None: ...


def check_timeout(timeout: float) -> float:
    if not isinstance(timeout, Real) or not 0 < timeout <= LONGEST_TIMEOUT:
        remedy = f"give the seconds to wait, more than 0 and at most {LONGEST_TIMEOUT}"
        raise ValueError(f"timeout is {timeout!r}: {remedy}")
    return timeout


def open_transports(
    url: str | Sequence[str] | None,
    protocol: str,
    tls: TLSLike,
    shared_memory_token: str | None,
    headers: Headers,
    asynchronous: bool,
) -> list[Any]:
    """Create a transport for each server, an `AsyncTransport` if `asynchronous`; nothing is sent yet.

    Raises `ValueError` for an unknown protocol, or a malformed URL, token or header.
    """
    found = addresses(url, protocol, tls, headers)
    kind: Any
    if protocol == "grpc":  # imported here, so that HTTP needs no gRPC and the other way round
        from client import _transport_grpc as grpc

        kind = grpc.AsyncGrpcTransport if asynchronous else grpc.GrpcTransport
    elif asynchronous:
        from client import _async_http

        kind = _async_http.AsyncHttpTransport
    else:
        from client import _transport_http

        kind = _transport_http.HttpTransport
    if shared_memory_token is None:
        return [kind(each) for each in found]
    from client import _transport_shared as shared

    around = shared.AsyncSharedMemoryTransport if asynchronous else shared.SharedMemoryTransport
    return [around(kind(each), kind(each), shared_memory_token) for each in found]
