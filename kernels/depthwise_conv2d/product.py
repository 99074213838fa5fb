"""The tensor cores' product, in every Triton-language kernel that has one."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """acc [M,N] float32 + a [M,K] @ b [K,N]."""
    if INTERPRETED:  # the interpreter multiplies bfloat16 as the integers that it keeps it in
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)
