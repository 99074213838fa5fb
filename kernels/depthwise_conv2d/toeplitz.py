"""The tensor-core kernel: a depthwise convolution as one Toeplitz matrix product a channel (maths: README.md)."""

from dataclasses import dataclass

import triton
import triton.language as tl

from kernels.depthwise_conv2d.kernel import ACTIVATIONS
from kernels.depthwise_conv2d.packing import pack_filter


@triton.jit
def activate(value, activation):
    if activation == 1:
        value = tl.where(value < 0.0, 0.0, value)  # keeps a NaN
    elif activation == 2:
        value = 0.5 * value * (1.0 + tl.erf(value * 0.7071067811865476))
    return value


@triton.jit
def toeplitz_kernel(
    input_ptr,  # [N,C,H,W] by the strides below
    packed_ptr,  # [C,PLANES,WINDOW,COLUMNS]
    weight_ptr,  # [C,1,KH,KW] contiguous: read where a NaN or an infinity has to be kept to its own outputs
    bias_ptr,  # [C]; not read unless has_bias
    output_ptr,  # [N,C,H,W], the input's strides
    N,
    H,
    W,
    KH,
    KW,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    offset,
    planes,
    has_bias,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,  # of kernel.ACTIVATIONS
    INDEX: tl.constexpr,  # int32 where it can count the elements: half the registers
    INTERPRETED: tl.constexpr,
):
    """Output tiles of ROWS x COLUMNS pixels of BLOCK_M (row block, image) pairs of one channel, in float32.

    acc[(block,n),(y,x)] = sum_{r,u} input[n,c,y0+r-KH//2,x0+u-offset] * packed[c,r-y+ROWS-1,u,x]
    Rows r that lie outside the image for the whole tile are skipped. Bytes: the input once from memory and about
    (1 + KH/ROWS)(WINDOW/COLUMNS) times from the L2 cache, the packed filter once a tile from there, the output once.
    """
    W = W // ALIGNMENT * ALIGNMENT  # tells the compiler: tl.multiple_of does nothing to an argument
    stride_n = stride_n // ALIGNMENT * ALIGNMENT
    stride_c = stride_c // ALIGNMENT * ALIGNMENT
    stride_h = stride_h // ALIGNMENT * ALIGNMENT
    offset = offset // 8 * 8
    tiles_x = tl.cdiv(W, COLUMNS)
    blocks_y = tl.cdiv(H, ROWS)
    c = tl.program_id(1).to(tl.int64)
    x0 = (tl.program_id(0) % tiles_x) * COLUMNS
    first = (tl.program_id(0) // tiles_x) * BLOCK_M
    m = first + tl.arange(0, BLOCK_M)  # [M], images of one row block side by side
    y0 = (m // N) * ROWS  # [M]
    image = (m % N).to(INDEX) * stride_n  # [M]
    input_ptr += c * stride_c
    output_ptr += c * stride_c
    real = m < N * blocks_y

    o = tl.arange(0, ROWS * COLUMNS)  # [O] pixels of the tile, row by row
    yo = o // COLUMNS
    xo = o % COLUMNS
    last = tl.minimum(first + BLOCK_M, N * blocks_y) - 1
    r_begin = tl.maximum(0, KH // 2 - (last // N) * ROWS)
    r_end = tl.minimum(KH + ROWS - 1, H + KH // 2 - (first // N) * ROWS)

    packed = packed_ptr + c * planes * (WINDOW * COLUMNS)
    acc = tl.zeros((BLOCK_M, ROWS * COLUMNS), dtype=tl.float32)
    for begin in range(r_begin * WINDOW, r_end * WINDOW, BLOCK_K):
        f = begin + tl.arange(0, BLOCK_K)  # [K] = (r, u)
        r = f // WINDOW
        u = f % WINDOW
        y = y0[:, None] + r[None, :] - KH // 2  # [M,K]
        x = x0 - offset + u  # [K]
        seen = (r < r_end) & (x >= 0) & (x < W)
        mask = real[:, None] & seen[None, :] & (y >= 0) & (y < H)
        a = tl.load(input_ptr + (image[:, None] + y * stride_h + (x * stride_w)[None, :]), mask=mask, other=0.0)
        plane = r[:, None] - yo[None, :] + (ROWS - 1)  # [K,O]
        b = tl.load(
            packed + (plane * WINDOW + u[:, None]) * COLUMNS + xo[None, :], mask=(r < r_end)[:, None], other=0.0
        )
        if INTERPRETED:  # which multiplies bfloat16 as the integers that it keeps it in
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)

    bias = tl.load(bias_ptr + c, mask=has_bias != 0, other=0.0).to(tl.float32)
    if tl.sum((acc != acc).to(tl.int32)) == 0:
        y = y0[:, None] + yo[None, :]  # [M,O]
        x = x0 + xo[None, :]
        mask = real[:, None] & (y < H) & (x < W)
        value = activate(acc + bias, ACTIVATION).to(output_ptr.dtype.element_ty)
        tl.store(output_ptr + (image[:, None] + y * stride_h + x * stride_w), value, mask=mask)
    else:  # a NaN or an infinity met one of the Toeplitz matrix's zeros: the same sums over the true taps alone
        for pixel in range(ROWS * COLUMNS):
            y = y0 + pixel // COLUMNS  # [M]
            x = x0 + pixel % COLUMNS + 0 * y
            total = tl.zeros((BLOCK_M,), dtype=tl.float32)
            for tap in range(KH * KW):
                row = y + (tap // KW - KH // 2)
                column = x + (tap % KW - KW // 2)
                inside = real & (row >= 0) & (row < H) & (column >= 0) & (column < W)
                value = tl.load(input_ptr + (image + row * stride_h + column * stride_w), mask=inside, other=0.0)
                weight = tl.load(weight_ptr + c * KH * KW + tap)
                total += tl.where(inside, value.to(tl.float32) * weight.to(tl.float32), 0.0)
            value = activate(total + bias, ACTIVATION).to(output_ptr.dtype.element_ty)
            tl.store(output_ptr + (image + y * stride_h + x * stride_w), value, mask=real & (y < H) & (x < W))


@dataclass(frozen=True)
class Tile:
    """How one shape is cut up; `offset` is how far the input window begins left of the output tile."""

    rows: int
    columns: int
    window: int
    offset: int
    block_m: int
    block_k: int
    warps: int
    stages: int


def choose_tile(batch: int, height: int, width: int, kernel_width: int, element_bytes: int) -> Tile:
    """By the shape alone: reasoned from tile sizes and traffic, not measured (README.md)."""
    pad = kernel_width // 2
    if width <= 32:  # one tile of whole rows: the window is the image's row
        columns = max(8, triton.next_power_of_2(width))
        window, offset = max(16, columns), 0
        rows = {8: 8, 16: 8, 32: 4}[columns]
    else:
        rows, columns = 8, 16
        offset = triton.cdiv(pad, 8) * 8  # windows begin at whole vectors
        window = 16 * triton.cdiv(offset + columns + pad, 16)
    pairs = batch * triton.cdiv(height, rows)
    block_m = max(16, min(64, triton.next_power_of_2(pairs)))
    block_k = 32 if element_bytes == 4 else 64
    warps = warps_for(block_m * rows * columns, element_bytes)
    return Tile(rows, columns, window, offset, block_m, block_k, warps, 3)


def warps_for(sums: int, element_bytes: int) -> int:
    """Of a program with so many sums; float32's products hold more registers."""
    return 8 if sums * element_bytes >= 16384 else 4


def alignment(tensor) -> int:
    """Elements (at most 8) that every row of the image begins at a multiple of: the widest load that is allowed."""
    if tensor.stride(3) != 1:
        return 1
    for elements in (8, 4, 2):
        numbers = (tensor.shape[3], *tensor.stride()[:3], tensor.data_ptr() // tensor.element_size())
        if all(number % elements == 0 for number in numbers):
            return elements
    return 1


def launch(input, weight, bias, output, activation, precision="ieee", tile=None):
    """output = act(convolution + bias), [N,C,H,W] of one layout and type; `weight` [C,1,KH,KW] contiguous."""
    batch, channels, height, width = input.shape
    kernel_height, kernel_width = weight.shape[2:]
    tile = tile or choose_tile(batch, height, width, kernel_width, input.element_size())
    packed = pack_filter(weight, tile)
    pairs = batch * triton.cdiv(height, tile.rows)
    grid = (triton.cdiv(pairs, tile.block_m) * triton.cdiv(width, tile.columns), channels)
    toeplitz_kernel[grid](
        input,
        packed,
        weight,
        weight if bias is None else bias,
        output,
        batch,
        height,
        width,
        kernel_height,
        kernel_width,
        *input.stride(),
        tile.offset,
        packed.shape[1],
        int(bias is not None),
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        WINDOW=tile.window,
        BLOCK_M=tile.block_m,
        BLOCK_K=tile.block_k,
        ALIGNMENT=min(alignment(input), alignment(output)),
        PRECISION=precision,
        ACTIVATION=ACTIVATIONS[activation],
        INDEX=tl.int32 if input.numel() < 2**31 else tl.int64,
        INTERPRETED=triton.knobs.runtime.interpret,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
