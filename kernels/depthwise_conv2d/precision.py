"""How float32 products are computed on the tensor cores: a setting of the process, as PyTorch's own is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = ("ieee", "tf32", "tf32x3")
_precision = "ieee"


def precision_of(dtype: torch.dtype) -> str:
    """What products of `dtype` are computed in: the setting is float32's alone."""
    return _precision if dtype == torch.float32 else "ieee"


def set_float32_precision(precision: str) -> None:
    """Forward, grad_input and grad_weight of float32 on a GPU from here on, in every thread; the CPU is always IEEE.

    "ieee" (the default) keeps every bit and takes no tensor cores; "tf32" rounds the factors to 10 bits of mantissa;
    "tf32x3" makes three such products of each, about as exact as IEEE. Sums are in float32 always. It is read when the
    operator runs, so a backward pass outside the setting has the precision that holds there.

    Raises:
        ValueError: for any other word.
    """
    global _precision
    if precision not in PRECISIONS:
        raise ValueError(f"float32 precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    _precision = precision


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """`set_float32_precision` for a block: `with kernels.float32_precision("tf32x3"): loss(model(x)).backward()`."""
    before = _precision
    set_float32_precision(precision)
    try:
        yield
    finally:
        set_float32_precision(before)
