"""A bar on standard error, so that standard output can be piped."""

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def progress(items: Sequence[Item], words: str, streamed: bool) -> Iterable[Item]:
    """`items` with a bar where somebody sees it.

    `streamed`: standard output has a line an item; on a terminal these show the progress, and a bar would garble them.
    """
    if len(items) < 2 or not sys.stderr.isatty() or (streamed and sys.stdout.isatty()):
        return items
    return _track(items, words)


def _track(items: Sequence[Item], words: str) -> Iterable[Item]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        yield from bar.track(items, description=words)
