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
    tls: TLSLike = None,
    shared_memory_token: str | None = None,
    headers: Headers = None,
) -> list[Transport]:
    """Create a transport for each server; nothing is sent yet.

    Raises `ValueError` for an unknown protocol, or a malformed URL, token or header.
    """
    found = addresses(url, protocol, tls, headers)
    if protocol == "grpc":  # imported here, so that HTTP needs no gRPC and the other way round
        from client._transport_grpc import GrpcTransport

        kind: Any = GrpcTransport
    else:
        from client._transport_http import HttpTransport

        kind = HttpTransport
    if shared_memory_token is None:
        return [kind(each) for each in found]
    from client._transport_shared import SharedMemoryTransport

    return [SharedMemoryTransport(kind(each), kind(each), shared_memory_token) for each in found]


def open_async_transports(
    url: str | Sequence[str] | None,
    protocol: str,
    tls: TLSLike = None,
    shared_memory_token: str | None = None,
    headers: Headers = None,
) -> list[AsyncTransport]:
    """`open_transports` for an `AsyncClassifier`."""
    found = addresses(url, protocol, tls, headers)
    if protocol == "grpc":
        from client._transport_grpc import AsyncGrpcTransport

        kind: Any = AsyncGrpcTransport
    else:
        from client._async_http import AsyncHttpTransport

        kind = AsyncHttpTransport
    if shared_memory_token is None:
        return [kind(each) for each in found]
    from client._transport_shared import AsyncSharedMemoryTransport

    return [AsyncSharedMemoryTransport(kind(each), kind(each), shared_memory_token) for each in found]
