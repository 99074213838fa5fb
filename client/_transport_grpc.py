"""KServe v2 over gRPC: one channel, for threads or for asyncio."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc

from client._address import Address
from client._errors import ClassifierError, error_from_status
from client._request import Answer, Request, Share
from client._status import ServerStatus
from client._wire_grpc import (
    STATUS_CALLS,
    channel_arguments,
    decode_answer,
    decode_regions,
    decode_status,
    encode_request,
    encode_share,
    error_from_rpc,
    make_stub,
    open_channel,
)


class GrpcTransport:
    """A thread-safe `Transport`."""

    def __init__(self, address: Address) -> None:
        self._headers, self.url = address.headers, address.url("grpc")
        self._channel = open_channel(grpc, address.target, *channel_arguments(address))
        self._stub = make_stub(self._channel)

    def infer(self, request: Request) -> Answer:
        response = self._call("ModelInfer", encode_request(request), request.model, request.timeout)
        return decode_answer(response, request, self.url)

    def share(self, share: Share) -> list[str]:
        """Send `share`; return the names of the server's regions if it asks for them. Raises a `ClassifierError`."""
        name, message, metadata = encode_share(share)
        return decode_regions(self._call(name, message, "shared memory", share.timeout, metadata))

    def status(self, timeout: float) -> ServerStatus:
        deadline = time.monotonic() + timeout
        answers = [self._call(*call, "status", deadline - time.monotonic()) for call in STATUS_CALLS]
        return decode_status(self.url, *answers)

    def close(self) -> None:
        self._channel.close()

    def _call(
        self, name: str, message: Any, model: str, timeout: float, metadata: Sequence[tuple[str, str]] = ()
    ) -> Any:
        metadata = (*self._headers().items(), *metadata)
        try:
            return getattr(self._stub, name)(message, timeout=timeout, metadata=metadata)
        except (grpc.RpcError, ValueError) as error:  # ValueError: another thread closed the channel
            raise error_from_rpc(error, self.url, model, timeout) from error


class AsyncGrpcTransport:
    """An `AsyncTransport`: the channel is made in the event loop of the first request."""

    def __init__(self, address: Address) -> None:
        self._headers, self.url = address.headers, address.url("grpc")
        self._target, self._arguments = address.target, channel_arguments(address)
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._closed = False

    async def infer(self, request: Request) -> Answer:
        response = await self._call("ModelInfer", encode_request(request), request.model, request.timeout)
        return decode_answer(response, request, self.url)

    async def share(self, share: Share) -> list[str]:
        """See `GrpcTransport.share`."""
        name, message, metadata = encode_share(share)
        return decode_regions(await self._call(name, message, "shared memory", share.timeout, metadata))

    async def status(self, timeout: float) -> ServerStatus:
        deadline = time.monotonic() + timeout
        answers = [await self._call(*call, "status", deadline - time.monotonic()) for call in STATUS_CALLS]
        return decode_status(self.url, *answers)

    async def close(self) -> None:
        self._closed = True
        if self._channel is not None:
            await self._channel.close()

    async def _call(
        self, name: str, message: Any, model: str, timeout: float, metadata: Sequence[tuple[str, str]] = ()
    ) -> Any:
        metadata = (*self._headers().items(), *metadata)
        if self._closed:
            raise self._cut_off(model, timeout)
        if self._channel is None:
            self._channel = open_channel(grpc.aio, self._target, *self._arguments)
            self._stub = make_stub(self._channel)
        try:
            return await getattr(self._stub, name)(message, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise error_from_rpc(error, self.url, model, timeout) from error
        except asyncio.CancelledError:
            if self._closed:  # closing made grpc cancel the call; the caller's own cancellation is passed on
                raise self._cut_off(model, timeout) from None
            raise

    def _cut_off(self, model: str, timeout: float) -> ClassifierError:
        return error_from_status("CANCELLED", "channel closed", url=self.url, model=model, timeout=timeout)
