"""A function over many arguments in threads: order kept, in flight bounded."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Argument], Result], arguments: Iterable[Argument], concurrency: int
) -> Iterator[Result]:
    """Each result as soon as it and those before it are there. Leaving early drops what has not begun."""
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="classify")
    try:
        for argument in arguments:
            waiting.append(pool.submit(function, argument))
            # A slow first one does not stop the rest, nor do they pile up.
            while waiting and (waiting[0].done() or len(waiting) == 2 * concurrency):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # closing the client ends what is still in flight
