"""whole_image.py's product with the filter's matrix written out first, so that it is read in vectors of 16 bytes.

It has not run on a GPU yet: only benchmarks/kernels calls it, to compare it with whole_image.py.
"""

import triton
import triton.language as tl

from kernels.depthwise_conv2d import whole_image
from kernels.depthwise_conv2d.activation import activate
from kernels.depthwise_conv2d.product import product
from kernels.depthwise_conv2d.whole_image import load_image, padded_width

PACK_BLOCK = 512  # taps that a program writes at once
LONGEST_ROW = 16  # pixels, a power of 2: a step of the loop is whole rows


@triton.jit
def pack_filter(
    weight_ptr,  # [KH,KW]
    packed_ptr,  # [ROW,PLANE/ROW,ROW]
    H: tl.constexpr,
    W: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ROW: tl.constexpr,
    PLANE: tl.constexpr,
    BLOCK: tl.constexpr,
    FLIP: tl.constexpr,
):
    """packed[px,q,ox] = weight[q-H+1+KH//2, px-ox+KW//2] for px, ox < W and q < 2H-1; 0 for px >= W, else any tap."""
    e = tl.arange(0, BLOCK)
    q = tl.minimum(e % PLANE // ROW, 2 * H - 2)
    ox = tl.minimum(e % ROW, W - 1)
    tap = (q - H + 1 + KH // 2) * KW + KW // 2 - ox
    STEP: tl.constexpr = -1 if FLIP else 1
    if FLIP:
        tap = KH * KW - 1 - tap
    for begin in tl.static_range(0, ROW, BLOCK // PLANE):
        px = begin + e // PLANE
        value = tl.load(weight_ptr + (tap + STEP * px), mask=px < W, other=0.0)
        tl.store(packed_ptr + (begin * PLANE + e), value)


@triton.jit
def packed_image_kernel(
    input_ptr,  # [N,C,H,W] contiguous
    weight_ptr,  # [C,1,KH,KW] contiguous
    bias_ptr,  # [C]; not read unless has_bias
    packed_ptr,  # [programs,ROW,2*OUTPUTS]
    output_ptr,  # [N,C,H,W] contiguous
    N,
    has_bias,
    C: tl.constexpr,
    H: tl.constexpr,
    W: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ROW: tl.constexpr,  # a power of 2, at least W and 2, at most BLOCK_K
    OUTPUTS: tl.constexpr,  # a power of 2, at least H*ROW
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK: tl.constexpr,  # of pack_filter
    FLIP: tl.constexpr,  # the filter turned by 180 degrees
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,  # a value of activation.ACTIVATIONS
    INDEX: tl.constexpr,  # int32 if it can index all elements of input and output
):
    """All pixels of BLOCK_N images of one channel, in float32; KH >= 2H-1, KW >= 2W-1. Outputs: y = H-1-oy, x = ox.

    acc[n,(oy,ox)] = bias[c] + sum_p input[n,c,p] * packed[px,py+oy,ox]
    The taps of a pixel for all outputs are one run of `packed`. A program writes its own and reads it after a barrier.
    Bytes: input, filter and output once each; `packed` written once, and read from the L1 cache.
    """
    PLANE: tl.constexpr = 2 * OUTPUTS
    c = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    real = n < N
    image = (n.to(INDEX) * C + c) * (H * W)  # [N]
    packed_ptr += (tl.program_id(0).to(tl.int64) * C + c) * (ROW * PLANE)  # of a batch of 1 41 times the input
    pack_filter(weight_ptr + c * (KH * KW), packed_ptr, H, W, KH, KW, ROW, PLANE, BLOCK, FLIP)

    o = tl.arange(0, OUTPUTS)  # [O] = (oy,ox)
    p = tl.arange(0, BLOCK_K)  # (py,px)
    taps = packed_ptr + ((p % ROW * PLANE + p // ROW * ROW)[:, None] + o[None, :])  # [K,O]
    bias = tl.load(bias_ptr + c, mask=has_bias != 0, other=0.0).to(tl.float32)
    acc = tl.zeros((BLOCK_N, OUTPUTS), dtype=tl.float32) + bias
    a = load_image(input_ptr, image, real, 0, H, W, ROW, BLOCK_K)
    tl.debug_barrier()
    b = tl.load(taps, mask=(p < H * ROW)[:, None], other=0.0)
    for begin in range(BLOCK_K, H * ROW + BLOCK_K, BLOCK_K):  # one step ahead: loads overlap the product
        taps += BLOCK_K  # elements, which are whole rows
        next_a = load_image(input_ptr, image, real, begin, H, W, ROW, BLOCK_K)
        next_b = tl.load(taps, mask=(begin + p < H * ROW)[:, None], other=0.0)
        acc = product(a, b, acc, PRECISION)
        a = next_a
        b = next_b

    value = activate(acc, ACTIVATION).to(output_ptr.dtype.element_ty)
    y, x = H - 1 - o // ROW, o % ROW
    place = image[:, None] + (y * W + x)[None, :]
    tl.store(output_ptr + place, value, mask=real[:, None] & ((y >= 0) & (x < W))[None, :])


def suits(input, kernel_size):
    return whole_image.suits(input, kernel_size) and padded_width(input.shape[3]) <= LONGEST_ROW


def launch(input, weight, bias, output, activation, precision="ieee", flip=False, tile=None):
    """Fill `output` as `whole_image.launch` does, for an input that `suits`."""
    batch, channels = input.shape[:2]
    constants = whole_image.constants_for(input, weight, activation, precision, flip, tile)
    row, plane, programs = constants["ROW"], 2 * constants["OUTPUTS"], triton.cdiv(batch, constants["BLOCK_N"])
    packed_image_kernel[(programs, channels)](
        input,
        weight,
        weight if bias is None else bias,
        weight.new_empty(programs * channels, row, plane),
        output,
        batch,
        int(bias is not None),
        **constants,
        BLOCK=min(row * plane, max(PACK_BLOCK, plane)),
    )
