"""A bar on standard error, so that standard output can be piped."""

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

Item = TypeVar("Item")


@contextlib.contextmanager
def progress(items: Sequence[Item], words: str, streamed: bool) -> Iterator[Iterable[Item]]:
    """Yield `items`, with a progress bar if standard error is a terminal; the bar is gone at the end.

    `streamed`: standard output has a line an item; on a terminal these show the progress, and a bar would garble them.
    """
    if len(items) < 2 or not sys.stderr.isatty() or (streamed and sys.stdout.isatty()):
        yield items
        return
    with _bar() as bar:
        yield bar.track(items, description=words)


@contextlib.asynccontextmanager
async def clock(seconds: float, words: str) -> AsyncIterator[None]:
    """Show a bar of the elapsed time, if standard error is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    with _bar() as bar:
        task = bar.add_task(words, total=seconds)
        started = time.monotonic()

        async def tick() -> None:
            while True:
                bar.update(task, completed=time.monotonic() - started)
                await asyncio.sleep(0.25)

        ticking = asyncio.create_task(tick())
        try:
            yield
        finally:
            ticking.cancel()


def _bar() -> "Progress":
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True, redirect_stdout=False)
