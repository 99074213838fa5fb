"""tl.dot in the interpreter as tensor cores compute it in float32: Triton's own interpreter ignores the precision."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
from triton.runtime import interpreter

MASK = np.uint32(0xFFFFE000)  # sign, exponent and 10 bits of mantissa


def cut(x: np.ndarray) -> np.ndarray:
    """Truncate to TF32: the least precise reading of a factor that hardware makes."""
    return (x.view(np.uint32) & MASK).view(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    """Round as cvt.rna.tf32 does: to the nearest, ties away from zero."""
    return ((x.view(np.uint32) + np.uint32(0x1000)) & MASK).view(np.float32)


@contextmanager
def rounded_products() -> Iterator[list[str]]:
    """Round products as tensor cores do; the list gets the precision of each: IEEE, TF32 or TF32x3 (three of TF32)."""
    seen: list[str] = []
    real = interpreter.InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, input_precision, *rest):
        word = str(input_precision).rsplit(".", 1)[-1]
        seen.append(word)
        if word == "IEEE":
            return real(self, a, b, d, input_precision, *rest)
        if word == "TF32":
            total = d.data + cut(a.data) @ cut(b.data)
        else:
            high = rounded(a.data), rounded(b.data)
            low = rounded(a.data - high[0]), rounded(b.data - high[1])
            total = d.data + (low[0] @ high[1] + high[0] @ low[1]) + high[0] @ high[1]
        return interpreter.TensorHandle(total, d.dtype.scalar)

    with mock.patch.object(interpreter.InterpreterBuilder, "create_dot", create_dot):
        yield seen
