"""The Triton-language kernels of the backward pass."""

import triton
import triton.language as tl

NUM_WARPS = 4


@triton.jit
def backward_kernel(unscaled_grad_ptr, grad_loss_ptr, scale_ptr, grad_ptr, size, BLOCK: tl.constexpr):
    """grad[n] = unscaled_grad[n] * (grad_loss * scale). Bytes: unscaled_grad read and grad written once."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(grad_loss_ptr).to(tl.float32) * tl.load(scale_ptr)
    value = tl.load(unscaled_grad_ptr + n, mask=n < size, other=0).to(tl.float32) * factor
    tl.store(grad_ptr + n, value.to(grad_ptr.dtype.element_ty), mask=n < size)


@triton.jit
def backward_signs_kernel(
    unscaled_grad_ptr,  # [outer,inner] bytes of four signs
    grad_loss_ptr,
    scale_ptr,
    grad_ptr,  # [outer,size], size <= 4 * inner
    outer,
    inner,
    size,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """grad[o, t*inner + n] = (0, 1, -1)[bits 2t, 2t + 1 of unscaled_grad[o, n]] * (grad_loss * scale).

    Bytes: a quarter of a byte an element read, grad written once.
    """
    blocks = tl.cdiv(inner, BLOCK_I)
    o = tl.program_id(0) // blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    n = tl.program_id(0) % blocks * BLOCK_I + tl.arange(0, BLOCK_I)
    valid = (o < outer)[:, None] & (n < inner)[None, :]
    row = o.to(tl.int64)[:, None]
    code = tl.load(unscaled_grad_ptr + row * inner + n[None, :], mask=valid, other=0).to(tl.int32)
    factor = tl.load(grad_loss_ptr).to(tl.float32) * tl.load(scale_ptr)
    plus, minus = factor.to(grad_ptr.dtype.element_ty), (-factor).to(grad_ptr.dtype.element_ty)
    zero = tl.zeros((BLOCK_O, BLOCK_I), grad_ptr.dtype.element_ty)
    for part in tl.static_range(4):
        value = tl.where((code & (2 << (2 * part))) != 0, minus, zero)
        value = tl.where((code & (1 << (2 * part))) != 0, plus, value)
        place = part * inner + n
        tl.store(grad_ptr + row * size + place[None, :], value, mask=valid & (place < size)[None, :])
