"""Conversion from channels_last to contiguous and back: each image's matrix [H*W,C], or [C,H*W], is transposed.

PyTorch's own copy moves 0.7 of an H200's 4.3 TB/s: for a layer of RepLKNet's third stage it takes 3.6 times as long as
the convolution itself.
"""

import torch
import triton
import triton.language as tl

from kernels import layout

BLOCK = 64  # rows and columns of a program's square: runs of 128 bytes of a 16-bit type


@triton.jit
def transpose_kernel(
    source_ptr,  # [N,rows,columns]
    target_ptr,  # [N,columns,rows]
    rows,
    columns,
    BLOCK: tl.constexpr,
):
    """target[n,c,r] = source[n,r,c]. Bytes: each read and written once, along the dimension contiguous there."""
    blocks_r, blocks_c = tl.cdiv(rows, BLOCK), tl.cdiv(columns, BLOCK)
    pid = tl.program_id(0)
    image = (pid // (blocks_r * blocks_c)).to(tl.int64) * rows * columns
    r = pid // blocks_c % blocks_r * BLOCK + tl.arange(0, BLOCK)
    c = pid % blocks_c * BLOCK + tl.arange(0, BLOCK)
    source = source_ptr + image + r[:, None] * columns + c[None, :]
    square = tl.load(source, mask=(r < rows)[:, None] & (c < columns)[None, :], other=0)
    target = target_ptr + image + c[:, None] * rows + r[None, :]
    tl.store(target, tl.trans(square), mask=(c < columns)[:, None] & (r < rows)[None, :])


def launch(source, target, rows, columns):
    """target [N,columns,rows] := source [N,rows,columns]; an image has less than 2**31 elements."""
    grid = (source.shape[0] * triton.cdiv(rows, BLOCK) * triton.cdiv(columns, BLOCK),)
    transpose_kernel[grid](source, target, rows, columns, BLOCK=BLOCK, num_warps=4, enable_fp_fusion=True)


def contiguous(input):
    """Return `input` [N,C,H,W], of any strides, itself if it is contiguous, else a contiguous copy."""
    if input.is_contiguous() or not _is_channels_last(input):
        return input.contiguous()
    output = torch.empty_like(input, memory_format=torch.contiguous_format)
    launch(input, output, input.shape[2] * input.shape[3], input.shape[1])
    return output


def restore_format(output, like):
    """Return contiguous `output` [N,C,H,W] itself if `like` is contiguous too, else a copy with `like`'s strides."""
    if like.is_contiguous() or not _is_channels_last(like):
        return layout.laid_out_as(output, like)
    result = torch.empty_like(like)
    launch(output, result, output.shape[1], output.shape[2] * output.shape[3])
    return result


def _is_channels_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last) and tensor[0].numel() < 2**31
