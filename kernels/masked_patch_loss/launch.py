"""Tiles and grids of the loss's kernels."""

import torch
import triton

from kernels.masked_patch_loss.kernel import LOSSES, MOST_PROGRAMS, NUM_WARPS, PARTS, TILE, finish_kernel, loss_kernel
from kernels.masked_patch_loss.kernel_backward import NUM_WARPS as BACKWARD_WARPS
from kernels.masked_patch_loss.kernel_backward import backward_kernel, backward_signs_kernel

MOST_CELLS = 64  # of a contiguous prediction in a program
LARGEST_FINISH = 8192  # partial sums in one pass


def tile(channels, stride, cells, channels_last):
    """Return (BLOCK_K, BLOCK_Q, STEPS) for an image of `channels` and a prediction of `cells` in all."""
    length, room = packed(channels, stride), TILE[channels_last]
    block_q = 1 if channels_last else min(triton.next_power_of_2(cells), MOST_CELLS)
    sizes = [1 << n for n in range((room // block_q).bit_length())]
    busy = [size for size in sizes if triton.cdiv(length, size) * size * 3 <= length * 4]  # a quarter idle at most
    block_k = max(busy)
    blocks = triton.cdiv(length, block_k)
    if channels_last:  # one cell per program, so that unmasked cells are skipped, unless cells are small
        return block_k, 1 if blocks > 1 else min(triton.next_power_of_2(cells), room // block_k), blocks
    return block_k, block_q, min(blocks, triton.cdiv(blocks * triton.cdiv(cells, block_q), MOST_PROGRAMS))


def packed(channels, stride):
    """Return the bytes that hold the signs of a cell, four each."""
    return triton.cdiv(channels * stride, PARTS) * stride


def is_channels_last(prediction):
    """Whether the channels of a cell are adjacent in memory; in an image of a single cell they always are."""
    return prediction.shape[2] * prediction.shape[3] == 1 or not prediction.is_contiguous()


def launch(prediction, target, mask, unscaled_grad, result, scale, loss):
    """Fill unscaled_grad (None: no gradient), result and scale [].

    prediction: contiguous or channels_last; mask [B,h',w']: any strides, not bool; unscaled_grad: see `loss_kernel`.
    """
    batch, _, h, w = prediction.shape
    channels, height = target.shape[1:3]
    stride, last = height // h, is_channels_last(prediction)
    block_k, block_q, steps = tile(channels, stride, batch * h * w, last)
    blocks = triton.cdiv(batch * h * w, block_q)
    number = blocks * triton.cdiv(packed(channels, stride), block_k * steps)  # programs
    sums = torch.empty(number, dtype=torch.float32, device=prediction.device)
    counts = torch.empty(blocks, dtype=torch.int32, device=prediction.device)
    loss_kernel[(number,)](
        prediction,
        target,
        mask,
        prediction if unscaled_grad is None else unscaled_grad,
        sums,
        counts,
        batch,
        *target.stride(),
        *mask.stride(),
        C=channels,
        h=h,
        w=w,
        S=stride,
        P=height // mask.shape[1],
        CHANNELS_LAST=last,
        LOSS=LOSSES[loss],
        GRADIENT=unscaled_grad is not None,
        BLOCK_K=block_k,
        BLOCK_Q=block_q,
        STEPS=steps,
        num_warps=NUM_WARPS[last and target.stride(3) == 1],
        enable_fp_fusion=True,
    )
    size = min(LARGEST_FINISH, max(256, triton.next_power_of_2(number)))
    finish_kernel[(1,)](
        sums,
        counts,
        result,
        scale,
        number,
        blocks,
        channels,
        LOSS=LOSSES[loss],
        BLOCK=size,
        num_warps=max(4, size // 256),
        enable_fp_fusion=True,
    )


def launch_backward(unscaled_grad, grad_loss, scale, grad):
    """grad := unscaled_grad * grad_loss * scale, of one memory format; a uint8 of unscaled_grad holds four signs."""
    if unscaled_grad.dtype != torch.uint8:
        grid = (triton.cdiv(grad.numel(), 1024),)
        tensors = (unscaled_grad, grad_loss, scale, grad)
        backward_kernel[grid](*tensors, grad.numel(), BLOCK=1024, num_warps=BACKWARD_WARPS, enable_fp_fusion=True)
        return
    batch, channels, h, w = grad.shape
    last = is_channels_last(grad)
    outer, rows = (batch * h * w, 1) if last else (batch, h * w)
    inner, size = unscaled_grad.shape[1] * rows, channels * rows
    block_o, block_i = backward_tile(inner, grad.element_size())
    grid = (triton.cdiv(inner, block_i) * triton.cdiv(outer, block_o),)
    backward_signs_kernel[grid](
        unscaled_grad,
        grad_loss,
        scale,
        grad,
        outer,
        inner,
        size,
        BLOCK_O=block_o,
        BLOCK_I=block_i,
        num_warps=BACKWARD_WARPS,
        enable_fp_fusion=True,
    )


def backward_tile(inner, element_size):
    """Return (BLOCK_O, BLOCK_I): 16 bytes per thread; BLOCK_I divides `inner` unless it would be less than 64."""
    room = 32 * BACKWARD_WARPS * 16 // element_size
    block_i = min(room, max(inner & -inner, min(64, triton.next_power_of_2(inner))))
    return room // block_i, block_i
