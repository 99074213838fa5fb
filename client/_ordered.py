"""Map a function over many arguments in threads or tasks: results in order, a bounded number of calls in flight."""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")

AHEAD = 2  # arguments read ahead of the oldest open result, per call in flight: a slow call does not stop the rest


def in_order(
    function: Callable[[Argument], Result], arguments: Iterable[Argument], concurrency: int
) -> Generator[Result, None, None]:
    """Yield each result as soon as it and all before it are ready; at the end raise what `arguments` raised.

    A thread reads `arguments`. Closing early drops the calls that have not begun; the thread ends when the source next
    yields or raises.
    """
    room = threading.Semaphore(AHEAD * concurrency - 1)
    # Through its module: gevent may have replaced the class since this module was imported.
    waiting: queue.SimpleQueue[Future[Result] | None] = queue.SimpleQueue()
    failures: list[BaseException] = []
    left = threading.Event()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="classify")

    def read() -> None:
        try:
            for argument in arguments:
                waiting.put(pool.submit(function, argument))
                room.acquire()
                if left.is_set():
                    return
        except BaseException as error:
            failures.append(error)
        finally:
            waiting.put(None)

    try:
        threading.Thread(target=read, name="classify-source", daemon=True).start()
        while (future := waiting.get()) is not None:
            result = future.result()
            room.release()
            yield result
        if failures:
            raise failures[0]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # closing the client ends what is still in flight
        left.set()
        room.release()


async def async_in_order(
    function: Callable[[Argument], Awaitable[Result]],
    arguments: Iterable[Argument] | AsyncIterable[Argument],
    concurrency: int,
) -> AsyncGenerator[Result, None]:
    """`in_order` for asyncio: a task reads `arguments`. Closing early cancels all calls."""
    gate, room = asyncio.Semaphore(concurrency), asyncio.Semaphore(AHEAD * concurrency - 1)
    waiting: deque[asyncio.Task[Result]] = deque()
    news = asyncio.Semaphore(0)  # released for each new task, and once at the end

    async def call(argument: Argument) -> Result:
        async with gate:
            return await function(argument)

    async def submit(argument: Argument) -> None:
        waiting.append(asyncio.create_task(call(argument)))
        news.release()
        await asyncio.sleep(0)  # a plain iterable would keep the event loop to itself
        await room.acquire()

    async def read() -> None:
        try:
            if isinstance(arguments, AsyncIterable):
                async for argument in arguments:
                    await submit(argument)
            else:
                for argument in arguments:
                    await submit(argument)
        finally:
            news.release()

    reader = asyncio.create_task(read())
    try:
        while await news.acquire() and waiting:
            result = await waiting[0]
            waiting.popleft()
            room.release()
            yield result
        await reader
    finally:
        for task in (reader, *waiting):
            task.cancel()
        await asyncio.gather(reader, *waiting, return_exceptions=True)
