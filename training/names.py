"""The names of a data set's files, of which there may be millions."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np


class Names(Sequence[str]):
    """A sequence of strings without NUL, stored as one block of bytes; indices are integers, not slices.

    Every worker would come to hold a copy of a list: to read a `str` changes its reference count, and with it the
    memory page that forked processes share.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.content = "".join(f"{name}\0" for name in names).encode(errors="surrogatepass")
        self.ends = np.flatnonzero(np.frombuffer(self.content, np.uint8) == 0)  # [N]

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        place = range(len(self))[index]
        start = self.ends[place - 1] + 1 if place else 0
        return self.content[start : self.ends[place]].decode(errors="surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return iter(self.content.decode(errors="surrogatepass").split("\0")[:-1])
