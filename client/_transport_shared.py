"""Around the transports of both protocols: the image goes through memory that this host's server reads."""

from collections.abc import Generator
from typing import Any

from client._request import Answer, Request
from client._shared_memory import Ask, SharedMemory
from client._status import ServerStatus


class SharedMemoryTransport:
    """A `Transport` around one that can also `share`."""

    def __init__(self, transport: Any, token: str) -> None:
        self.url = transport.url
        self._transport, self._memory = transport, SharedMemory(token)

    def infer(self, request: Request) -> Answer:
        return self._run(self._memory.infer(request))

    def status(self, timeout: float) -> ServerStatus:
        return self._transport.status(timeout)

    def close(self) -> None:
        self._run(self._memory.close())
        self._transport.close()

    def _run(self, steps: Generator[Ask, Any, Any]) -> Any:
        try:
            ask = next(steps)
            while True:
                try:
                    answer = ask(self._transport)
                except BaseException as error:
                    ask = steps.throw(error)
                else:
                    ask = steps.send(answer)
        except StopIteration as done:
            return done.value


class AsyncSharedMemoryTransport:
    """An `AsyncTransport` around one that can also `share`."""

    def __init__(self, transport: Any, token: str) -> None:
        self.url = transport.url
        self._transport, self._memory = transport, SharedMemory(token)

    async def infer(self, request: Request) -> Answer:
        return await self._run(self._memory.infer(request))

    async def status(self, timeout: float) -> ServerStatus:
        return await self._transport.status(timeout)

    async def close(self) -> None:
        await self._run(self._memory.close())
        await self._transport.close()

    async def _run(self, steps: Generator[Ask, Any, Any]) -> Any:
        try:
            ask = next(steps)
            while True:
                try:
                    answer = await ask(self._transport)
                except BaseException as error:
                    ask = steps.throw(error)
                else:
                    ask = steps.send(answer)
        except StopIteration as done:
            return done.value
