"""Around the transports of both protocols: the image goes through memory that this host's server reads."""

import asyncio
import contextlib
import time
from typing import Any

from client._attempts import Pause, drive, drive_async
from client._request import Answer, Request, Share
from client._shared_memory import SharedMemory
from client._status import ServerStatus


class SharedMemoryTransport:
    """A `Transport`. Images go over `transport`; `sharing`, one like it, shows and takes back the memory.

    They are two so that closing the first ends what is in flight, and the second can still take back what that held.
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
    """The same as an `AsyncTransport`."""

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
