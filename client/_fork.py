"""Reset what a forked process must not share with its parent, such as connections."""

import os
import weakref
from typing import Any

_ALL: "weakref.WeakSet[Any]" = weakref.WeakSet()


def forget_when_forked(each: Any) -> None:
    """Have a forked process call `each.forget()`: all that it holds is still in use by the parent."""
    _ALL.add(each)


def forget_all() -> None:
    for each in list(_ALL):
        each.forget()


if hasattr(os, "register_at_fork"):  # a system without fork has none
    os.register_at_fork(after_in_child=forget_all)
