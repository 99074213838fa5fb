"""Checks of arguments: the one that both operations make before PyTorch sees them, and those of sizes."""

from typing import Any

import torch
from torch import Tensor


def check_tensors(**arguments: Any) -> None:
    """Raise `ValueError` for an argument that is not a tensor."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is of type {type(value).__name__}: a tensor is expected")


def holds(condition: Any, unknown: bool) -> bool:
    """Whether `condition` holds for a call's sizes; `unknown` where the compiler has none for one (an unbacked batch).

    The operator checks its arguments again when it runs.
    """
    if not isinstance(condition, torch.SymBool):
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import guard_or_false, guard_or_true  # takes part of a second

    return bool((guard_or_true if unknown else guard_or_false)(condition))


def differ(shape: Any, expected: Any) -> bool:
    """Whether two shapes of one length are known to differ."""
    return any(holds(size != wanted, unknown=False) for size, wanted in zip(shape, expected, strict=True))
