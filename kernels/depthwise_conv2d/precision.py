"""The precision of float32 products on the tensor cores: a setting of the process, as PyTorch's own is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = ("ieee", "tf32", "tf32x3")
_precision = "ieee"


def precision_of(dtype: torch.dtype) -> str:
    """Return the precision of products of `dtype`: the setting applies to float32 only."""
    return _precision if dtype == torch.float32 else "ieee"


def set_float32_precision(precision: str) -> None:
    """Set the precision of float32 products in forward, grad_input and grad_weight on GPUs, in every thread.

    "ieee" (the default) keeps every bit and uses no tensor cores; "tf32" rounds the factors to 10 bits of mantissa;
    "tf32x3" replaces each product by three such products, about as exact as IEEE. Sums are always float32, and the CPU
    is always IEEE. The setting is read when the operator runs, also by a backward pass.

    Raises:
        ValueError: for any other string.
    """
    global _precision
    if precision not in PRECISIONS:
        raise ValueError(f"float32 precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    _precision = precision


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """Set the precision for a block: `with kernels.float32_precision("tf32x3"): loss(model(x)).backward()`."""
    before = _precision
    set_float32_precision(precision)
    try:
        yield
    finally:
        set_float32_precision(before)
