"""The matrix product on the tensor cores, for all Triton-language kernels that have one."""

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """acc [M,N] float32 + a [M,K] @ b [K,N]."""
    if INTERPRETED:  # the interpreter stores bfloat16 as integers, and would multiply those
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)
