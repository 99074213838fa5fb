"""The Triton-language kernel for few taps: compiled just in time, or ahead of time (native/aot.py)."""

import triton
import triton.language as tl

from kernels.depthwise_conv2d.activation import ACTIVATIONS, activate

# (BLOCK_P, BLOCK_C) by memory format: a tile is longest along the tensor's contiguous dimension.
BLOCKS = {"contiguous": (128, 1), "channels_last": (16, 32)}
NUM_WARPS = 4


@triton.jit
def depthwise_conv2d_kernel(
    input_ptr,  # [N,C,H,W] by the strides below
    weight_ptr,  # [C,1,KH,KW] contiguous
    bias_ptr,  # [C]; not read unless has_bias
    output_ptr,  # [N,C,H,W], the input's strides
    C,
    H,
    W,
    KH,
    KW,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    has_bias,
    activation,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A tile of BLOCK_P pixels of one image by BLOCK_C channels, accumulated in float32 over all taps.

    output[n,c,y,x] = act(bias[c] + sum_{i,j} weight[c,0,i,j] * input[n,c,y+i-KH//2,x+j-KW//2])
    Bytes: N*C*H*W read and written once each from device memory, the K*K re-reads come from the caches.
    """
    blocks = tl.cdiv(H * W, BLOCK_P)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    p = (tl.program_id(0) % blocks) * BLOCK_P + tl.arange(0, BLOCK_P)  # [P] pixels of the image, row by row
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)  # [Cb]
    y = p // W
    x = p % W
    channel = c < C
    image = n * stride_n + c.to(tl.int64)[None, :] * stride_c  # [1,Cb]

    acc = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for i in range(KH):
        row = y + i - KH // 2
        in_row = (row >= 0) & (row < H) & (p < H * W)
        for j in range(KW):
            column = x + j - KW // 2
            inside = in_row & (column >= 0) & (column < W)
            offset = row.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w  # [P]
            value = tl.load(input_ptr + image + offset[:, None], mask=inside[:, None] & channel[None, :], other=0.0)
            weight = tl.load(weight_ptr + (c * KH + i) * KW + j, mask=channel, other=0.0)  # [Cb]
            acc += value.to(tl.float32) * weight.to(tl.float32)[None, :]

    if has_bias != 0:
        acc += tl.load(bias_ptr + c, mask=channel, other=0.0).to(tl.float32)[None, :]
    acc = activate(acc, activation)
    offset = y.to(tl.int64) * stride_h + x.to(tl.int64) * stride_w
    mask = (p < H * W)[:, None] & channel[None, :]
    tl.store(output_ptr + image + offset[:, None], acc.to(output_ptr.dtype.element_ty), mask=mask)


def launch(input, weight, bias, output, activation):
    """Launch on `input` and `output` of the same memory format, contiguous or channels_last."""
    batch, channels, height, width = input.shape
    block_p, block_c = BLOCKS["contiguous" if input.is_contiguous() else "channels_last"]
    grid = (batch * triton.cdiv(height * width, block_p), triton.cdiv(channels, block_c))
    depthwise_conv2d_kernel[grid](
        input,
        weight,
        weight if bias is None else bias,
        output,
        channels,
        height,
        width,
        weight.shape[2],
        weight.shape[3],
        *input.stride(),
        int(bias is not None),
        ACTIVATIONS[activation],
        BLOCK_P=block_p,
        BLOCK_C=block_c,
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )
