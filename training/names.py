"""The names of a data set's files, a million of them and more."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np


class Names(Sequence[str]):
    """Texts without a NUL, as one block of bytes; they are numbered from 0 and not sliced.

    Of a list every worker would come to hold a copy: to read a `str` changes its reference count, and with it the page
    that forked processes share.
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
