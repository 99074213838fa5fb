"""Around the transports of both protocols: the image goes through memory that this host's server reads."""

import asyncio
import contextlib
import time
from typing import Any

from client._attempts import Pause
from client._request import Answer, Request
from client._shared_memory import SharedMemory, Steps
from client._status import ServerStatus


class SharedMemoryTransport:
    """A `Transport`. Images go over `transport`; `sharing`, one like it, shows and takes back the memory.

    They are two so that closing the first ends what is in flight, and the second can still take back what that held.
    """

    def __init__(self, transport: Any, sharing: Any, token: str) -> None:
        self.url = transport.url
        self._transport, self._sharing, self._memory = transport, sharing, SharedMemory(token)

    def infer(self, request: Request) -> Answer:
        return self._run(self._memory.infer(request))

    def status(self, timeout: float) -> ServerStatus:
        return self._transport.status(timeout)

    def close(self) -> None:
        """Takes half a second at most."""
        with contextlib.closing(self._sharing):
            self._transport.close()
            self._run(self._memory.close())

    def _run(self, steps: Steps) -> Any:
        try:
            step = next(steps)
            while True:
                result = None
                try:
                    if isinstance(step, Request):
                        result = self._transport.infer(step)
                    elif isinstance(step, Pause):
                        time.sleep(step.seconds)
                    else:
                        result = self._sharing.share(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            return done.value


class AsyncSharedMemoryTransport:
    """The same as an `AsyncTransport`."""

    def __init__(self, transport: Any, sharing: Any, token: str) -> None:
        self.url = transport.url
        self._transport, self._sharing, self._memory = transport, sharing, SharedMemory(token)

    async def infer(self, request: Request) -> Answer:
        return await self._run(self._memory.infer(request))

    async def status(self, timeout: float) -> ServerStatus:
        return await self._transport.status(timeout)

    async def close(self) -> None:
        """Takes half a second at most."""
        try:
            await self._transport.close()
            await self._run(self._memory.close())
        finally:
            await self._sharing.close()

    async def _run(self, steps: Steps) -> Any:
        try:
            step = next(steps)
            while True:
                result = None
                try:
                    if isinstance(step, Request):
                        result = await self._transport.infer(step)
                    elif isinstance(step, Pause):
                        await asyncio.sleep(step.seconds)
                    else:
                        result = await self._sharing.share(step)
                except BaseException as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as done:
            return done.value
