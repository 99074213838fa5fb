"""Transports that pass the image in shared memory to a server on this host, around those of both protocols."""

import asyncio
import contextlib
import time
from typing import Any

from client._attempts import Pause, drive, drive_async
from client._request import Answer, Request, Share
from client._shared_memory import SharedMemory
from client._status import ServerStatus


class SharedMemoryTransport:
    """A `Transport`: `transport` sends the requests; `sharing`, a second one, registers and unregisters the memory.

    There are two so that closing the first ends the requests in flight, and the second can still unregister their
    regions.
    """

    def __init__(self, transport: Any, sharing: Any, token: str) -> None:
        self.url = transport.url
        self._transport, self._sharing, self._memory = transport, sharing, SharedMemory(token)

    def infer(self, request: Request) -> Answer:
        return drive(self._memory.infer(request), self._act)

    def status(self, timeout: float) -> ServerStatus:
        return self._transport.status(timeout)

    def close(self) -> None:
        """Takes half a second at most."""
        with contextlib.closing(self._sharing):
            self._transport.close()
            drive(self._memory.close(), self._act)

    def _act(self, step: Request | Share | Pause) -> Any:
        if isinstance(step, Request):
            return self._transport.infer(step)
        if isinstance(step, Share):
            return self._sharing.share(step)
        return time.sleep(step.seconds)


class AsyncSharedMemoryTransport:
    """`SharedMemoryTransport` as an `AsyncTransport`."""

    def __init__(self, transport: Any, sharing: Any, token: str) -> None:
        self.url = transport.url
        self._transport, self._sharing, self._memory = transport, sharing, SharedMemory(token)

    async def infer(self, request: Request) -> Answer:
        return await drive_async(self._memory.infer(request), self._act)

    async def status(self, timeout: float) -> ServerStatus:
        return await self._transport.status(timeout)

    async def close(self) -> None:
        """Takes half a second at most."""
        try:
            await self._transport.close()
            await drive_async(self._memory.close(), self._act)
        finally:
            await self._sharing.close()

    async def _act(self, step: Request | Share | Pause) -> Any:
        if isinstance(step, Request):
            return await self._transport.infer(step)
        if isinstance(step, Share):
            return await self._sharing.share(step)
        return await asyncio.sleep(step.seconds)
