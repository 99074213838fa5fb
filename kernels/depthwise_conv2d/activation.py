"""The activation that ends every forward Triton-language kernel, and the number that selects it."""

import triton
import triton.language as tl

ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2}


@triton.jit
def activate(value, activation):
    if activation == 1:
        value = tl.where(value < 0.0, 0.0, value)  # keeps a NaN
    elif activation == 2:
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    return value
