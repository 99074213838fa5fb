"""The check that both operations make before PyTorch sees their arguments."""

from typing import Any

from torch import Tensor


def check_tensors(**arguments: Any) -> None:
    """Raise `ValueError` for an argument that is not a tensor."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is of type {type(value).__name__}: a tensor is expected")
