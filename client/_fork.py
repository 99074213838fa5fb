"""What a forked process must not share with its parent, such as a connection: it begins without."""

import os
import weakref
from typing import Protocol


class Forgets(Protocol):
    def forget(self) -> None:
        """Begins anew, in a process that was forked: all that it holds is its parent's, and still in use there."""


_ALL: "weakref.WeakSet[Forgets]" = weakref.WeakSet()


def forget_when_forked(each: Forgets) -> None:
    _ALL.add(each)


def forget_all() -> None:
    for each in list(_ALL):
        each.forget()


if hasattr(os, "register_at_fork"):  # a system without fork has none
    os.register_at_fork(after_in_child=forget_all)
