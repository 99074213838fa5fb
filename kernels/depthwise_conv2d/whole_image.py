"""The tensor-core kernel for images in which every output sees every pixel: a dense matrix product per channel."""

from dataclasses import dataclass

import triton
import triton.language as tl

from kernels.depthwise_conv2d.activation import ACTIVATIONS, activate
from kernels.depthwise_conv2d.product import product

LARGEST = 256  # outputs of a program: all of a channel's, in rows padded to a power of 2
STAGES = 1  # the kernel loads a step ahead itself


@dataclass(frozen=True)
class WholeImageTile:
    """A form of this kernel, or of packed_image.py, which only benchmarks/kernels asks for: none has run on a GPU."""

    packed: bool
    block_k: int  # pixels of a step
    warps: int


@triton.jit
def load_image(
    input_ptr, image, real, begin, H: tl.constexpr, W: tl.constexpr, ROW: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Load pixels p = (py,px) from `begin` on, in rows padded to ROW: [N,K]; 0 outside the image."""
    p = begin + tl.arange(0, BLOCK_K)
    inside = (p // ROW < H) & (p % ROW < W)
    place = image[:, None] + (p // ROW * W + p % ROW)[None, :]
    return tl.load(input_ptr + place, mask=real[:, None] & inside[None, :], other=0.0)


@triton.jit
def load_taps(
    taps,  # [1,O] pointers to each output's tap for pixel (0,0)
    begin,
    H: tl.constexpr,
    W: tl.constexpr,
    KW: tl.constexpr,
    STEP: tl.constexpr,  # from a pixel's tap to the next pixel's
    ROW: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Load the taps of the even and of the odd pixels from `begin` on for each output: two [K/2,O]."""
    p = begin + 2 * tl.arange(0, BLOCK_K // 2)
    tap = taps + (STEP * (p // ROW * KW + p % ROW))[:, None]
    row = p // ROW < H
    even = tl.load(tap, mask=(row & (p % ROW < W))[:, None], other=0.0)
    odd = tl.load(tap + STEP, mask=(row & (p % ROW + 1 < W))[:, None], other=0.0)
    return even, odd


@triton.jit
def whole_image_kernel(
    input_ptr,  # [N,C,H,W] contiguous
    weight_ptr,  # [C,1,KH,KW] contiguous
    bias_ptr,  # [C]; not read unless has_bias
    output_ptr,  # [N,C,H,W] contiguous
    N,
    has_bias,
    C: tl.constexpr,
    H: tl.constexpr,  # constants, so that most addresses differ by a constant
    W: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ROW: tl.constexpr,  # a power of 2, at least W and 2
    OUTPUTS: tl.constexpr,  # a power of 2, at least H*ROW
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FLIP: tl.constexpr,  # the filter turned by 180 degrees
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,  # a value of activation.ACTIVATIONS
    INDEX: tl.constexpr,  # int32 if it can index all elements
):
    """All pixels o of BLOCK_N images of one channel, in float32; KH >= 2H-1 and KW >= 2W-1.

    acc[n,o] = bias[c] + sum_p input[n,c,p] * weight[c,0,py-oy+KH//2,px-ox+KW//2]
    The matrix is read tap by tap from the filter, in the L1 cache. Each (p,o) has a tap, so no padding zero is
    multiplied, and a NaN or an infinity reaches exactly the outputs that see it. Bytes: input, filter and output once.
    """
    c = tl.program_id(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    real = n < N
    image = (n.to(INDEX) * C + c) * (H * W)  # [N]
    o = tl.arange(0, OUTPUTS)  # [O] = (oy,ox); those beyond the image are not stored: any tap will do
    first = (KH // 2 - tl.minimum(o // ROW, H - 1)) * KW + KW // 2 - tl.minimum(o % ROW, W - 1)
    STEP: tl.constexpr = -1 if FLIP else 1
    if FLIP:
        first = KH * KW - 1 - first
    taps = weight_ptr + (c * (KH * KW) + first)[None, :]

    bias = tl.load(bias_ptr + c, mask=has_bias != 0, other=0.0).to(tl.float32)
    acc = tl.zeros((BLOCK_N, OUTPUTS), dtype=tl.float32) + bias
    a = load_image(input_ptr, image, real, 0, H, W, ROW, BLOCK_K)
    even, odd = load_taps(taps, 0, H, W, KW, STEP, ROW, BLOCK_K)
    for begin in range(BLOCK_K, H * ROW + BLOCK_K, BLOCK_K):  # one step ahead: loads overlap the product
        next_a = load_image(input_ptr, image, real, begin, H, W, ROW, BLOCK_K)
        next_even, next_odd = load_taps(taps, begin, H, W, KW, STEP, ROW, BLOCK_K)
        b = tl.join(even, odd).permute(0, 2, 1).reshape(BLOCK_K, OUTPUTS)
        acc = product(a, b, acc, PRECISION)
        a = next_a
        even = next_even
        odd = next_odd

    value = activate(acc, ACTIVATION).to(output_ptr.dtype.element_ty)
    place = image[:, None] + (o // ROW * W + o % ROW)[None, :]
    seen = (o // ROW < H) & (o % ROW < W)
    tl.store(output_ptr + place, value, mask=real[:, None] & seen[None, :])


def padded_width(width):
    """Return the pixels of a padded row, ROW in the kernel."""
    return max(2, triton.next_power_of_2(width))


def suits(input, kernel_size):
    """Whether every output sees every pixel, a program holds a channel's outputs, and the type is of 16 bits."""
    height, width = input.shape[2:]
    whole = kernel_size[0] >= 2 * height - 1 and kernel_size[1] >= 2 * width - 1
    return whole and height * padded_width(width) <= LARGEST and input.element_size() == 2


def sizes(height, width, kernel_height, kernel_width, block_n):
    """Return the kernel's compile-time sizes, for one size of image and of filter."""
    row = padded_width(width)
    constants = {"H": height, "W": width, "KH": kernel_height, "KW": kernel_width, "ROW": row}
    constants["OUTPUTS"] = max(16, triton.next_power_of_2(height * row))
    return {**constants, "BLOCK_N": block_n, "BLOCK_K": 16 if block_n == 16 else 32}


def warps_for(block_n):
    return 4 if block_n == 16 else 8


def constants_for(input, weight, activation, precision, flip, tile=None):
    """Return all compile-time arguments of a launch, of packed_image.py's too; without a tile those by rule."""
    batch, channels, height, width = input.shape
    block_n = max(16, min(64, triton.next_power_of_2(batch)))
    form = sizes(height, width, *weight.shape[2:], block_n) | {"num_warps": warps_for(block_n)}
    if tile:
        form |= {"BLOCK_K": tile.block_k, "num_warps": tile.warps}
    return {
        "C": channels,
        **form,
        "FLIP": flip,
        "PRECISION": precision,
        "ACTIVATION": ACTIVATIONS[activation],
        "INDEX": tl.int32 if input.numel() < 2**31 else tl.int64,
        "num_stages": STAGES,
        "enable_fp_fusion": True,
    }


def launch(input, weight, bias, output, activation, precision="ieee", flip=False, tile=None):
    """Fill output [N,C,H,W] with act(convolution + bias); all are contiguous. `flip` turns `weight` [C,1,KH,KW]."""
    batch, channels = input.shape[:2]
    constants = constants_for(input, weight, activation, precision, flip, tile)
    whole_image_kernel[(triton.cdiv(batch, constants["BLOCK_N"]), channels)](
        input,
        weight,
        weight if bias is None else bias,
        output,
        batch,
        int(bias is not None),
        **constants,
    )
