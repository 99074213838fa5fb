"""The Triton-language kernel of a training pair: a large and a small filter over one input tile (maths: README.md)."""

import triton
import triton.language as tl

from kernels.depthwise_conv2d.packing import pack_filter
from kernels.depthwise_conv2d.toeplitz import alignment, choose_tile


@triton.jit
def load_input(input_ptr, f, end, row_offset, image, y0, real, x, stride_h, H, W, WINDOW: tl.constexpr):
    """input[n,c,y0+r-row_offset,x+u] for f = (r,u), rows below `end`: [M,K]."""
    r = f // WINDOW
    column = x + f % WINDOW
    y = y0[:, None] + r[None, :] - row_offset
    seen = (r < end) & (column >= 0) & (column < W)
    mask = real[:, None] & seen[None, :] & (y >= 0) & (y < H)
    return tl.load(input_ptr + (image[:, None] + y * stride_h + column[None, :]), mask=mask, other=0.0)


@triton.jit
def load_planes(packed_ptr, f, end, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WINDOW: tl.constexpr):
    """packed[r-y+ROWS-1,u,x] for f = (r,u), rows below `end`: [K,(y,x)]."""
    r = f // WINDOW
    o = tl.arange(0, ROWS * COLUMNS)
    plane = r[:, None] - (o // COLUMNS)[None, :] + (ROWS - 1)
    place = (plane * WINDOW + (f % WINDOW)[:, None]) * COLUMNS + (o % COLUMNS)[None, :]
    return tl.load(packed_ptr + place, mask=((r >= 0) & (r < end))[:, None], other=0.0)


@triton.jit
def true_taps(
    output_ptr,
    input_ptr,
    weight_ptr,
    image,
    y0,
    x0,
    real,
    stride_h,
    H,
    W,
    KH,
    KW,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One filter's sums over the taps inside the image alone, stored: what is not finite stays with who sees it."""
    for pixel in range(ROWS * COLUMNS):
        y = y0 + pixel // COLUMNS  # [M]
        x = x0 + pixel % COLUMNS + 0 * y
        total = tl.zeros_like(y).to(tl.float32)
        for tap in range(KH * KW):
            row = y + (tap // KW - KH // 2)
            column = x + (tap % KW - KW // 2)
            inside = real & (row >= 0) & (row < H) & (column >= 0) & (column < W)
            value = tl.load(input_ptr + (image + row * stride_h + column), mask=inside, other=0.0)
            total += tl.where(inside, value.to(tl.float32) * tl.load(weight_ptr + tap).to(tl.float32), 0.0)
        where = output_ptr + (image + y * stride_h + x)
        tl.store(where, total.to(output_ptr.dtype.element_ty), mask=real & (y < H) & (x < W))


@triton.jit
def pair_kernel(
    input_ptr,  # [N,C,H,W] contiguous
    packed_ptr,  # [C,KH+2*(ROWS-1),WINDOW,COLUMNS]
    small_packed_ptr,  # [C,SH+2*(ROWS-1),WINDOW,COLUMNS]
    weight_ptr,  # [C,1,KH,KW] contiguous: read where something is not finite
    small_weight_ptr,  # [C,1,SH,SW] likewise
    output_ptr,  # [N,C,H,W] contiguous
    small_output_ptr,  # [N,C,H,W] contiguous
    N,
    C,
    H,
    W,
    KH,
    KW,
    SH,
    SW,
    offset,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """toeplitz_kernel's tile for two filters: a row that serves the small one too enters a second product.

    output = sum_{r,u} input[.., y0+r-KH//2, x0+u-offset] * packed[c,r-y+ROWS-1,u,x], small_output likewise with r by
    KH//2-SH//2 less. Bytes: as toeplitz_kernel's, a second output, the small filter's planes from the L2 cache.
    """
    W = W // ALIGNMENT * ALIGNMENT  # tells the compiler how wide loads may be
    offset = offset // 8 * 8
    plane = H * W
    tiles_x = tl.cdiv(W, COLUMNS)
    blocks_y = tl.cdiv(H, ROWS)
    c = tl.program_id(1).to(tl.int64)
    x0 = (tl.program_id(0) % tiles_x) * COLUMNS
    first = (tl.program_id(0) // tiles_x) * BLOCK_M
    m = first + tl.arange(0, BLOCK_M)  # [M], images of one row block side by side
    y0 = (m // N) * ROWS
    image = (m % N).to(INDEX) * C * plane
    real = m < N * blocks_y
    input_ptr += c * plane
    packed = packed_ptr + c * (KH + 2 * (ROWS - 1)) * (WINDOW * COLUMNS)
    small_packed = small_packed_ptr + c * (SH + 2 * (ROWS - 1)) * (WINDOW * COLUMNS)

    last = tl.minimum(first + BLOCK_M, N * blocks_y) - 1
    begin = tl.maximum(0, KH // 2 - (last // N) * ROWS)
    end = tl.minimum(KH + ROWS - 1, H + KH // 2 - (first // N) * ROWS)
    apart = KH // 2 - SH // 2  # rows of the large filter above the small one
    small_begin = tl.minimum(tl.maximum(begin, apart), end)
    small_end = tl.maximum(tl.minimum(end, apart + SH + ROWS - 1), small_begin)

    acc = tl.zeros((BLOCK_M, ROWS * COLUMNS), dtype=tl.float32)
    small = tl.zeros((BLOCK_M, ROWS * COLUMNS), dtype=tl.float32)
    x = x0 - offset
    for start in range(begin * WINDOW, small_begin * WINDOW, BLOCK_K):
        f = start + tl.arange(0, BLOCK_K)  # [K] = (r,u)
        a = load_input(input_ptr, f, small_begin, KH // 2, image, y0, real, x, W, H, W, WINDOW)
        b = load_planes(packed, f, small_begin, ROWS, COLUMNS, WINDOW)
        if INTERPRETED:  # which multiplies bfloat16 as the integers that it keeps it in
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    for start in range(small_begin * WINDOW, small_end * WINDOW, BLOCK_K):
        f = start + tl.arange(0, BLOCK_K)
        a = load_input(input_ptr, f, small_end, KH // 2, image, y0, real, x, W, H, W, WINDOW)
        b = load_planes(packed, f, small_end, ROWS, COLUMNS, WINDOW)
        s = load_planes(small_packed, f - apart * WINDOW, small_end - apart, ROWS, COLUMNS, WINDOW)
        if INTERPRETED:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
            s = s.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        small = tl.dot(a, s, small, input_precision=PRECISION)
    for start in range(small_end * WINDOW, end * WINDOW, BLOCK_K):
        f = start + tl.arange(0, BLOCK_K)
        a = load_input(input_ptr, f, end, KH // 2, image, y0, real, x, W, H, W, WINDOW)
        b = load_planes(packed, f, end, ROWS, COLUMNS, WINDOW)
        if INTERPRETED:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)

    o = tl.arange(0, ROWS * COLUMNS)  # [O] pixels of the tile, row by row
    y = y0[:, None] + (o // COLUMNS)[None, :]
    column = x0 + (o % COLUMNS)[None, :]
    mask = real[:, None] & (y < H) & (column < W)
    place = image[:, None] + y * W + column
    output_ptr += c * plane
    small_output_ptr += c * plane
    if tl.sum((acc != acc).to(tl.int32)) == 0:
        tl.store(output_ptr + place, acc.to(output_ptr.dtype.element_ty), mask=mask)
    else:
        weight_ptr += c * KH * KW
        true_taps(output_ptr, input_ptr, weight_ptr, image, y0, x0, real, W, H, W, KH, KW, ROWS, COLUMNS)
    if tl.sum((small != small).to(tl.int32)) == 0:
        tl.store(small_output_ptr + place, small.to(output_ptr.dtype.element_ty), mask=mask)
    else:
        small_weight_ptr += c * SH * SW
        true_taps(small_output_ptr, input_ptr, small_weight_ptr, image, y0, x0, real, W, H, W, SH, SW, ROWS, COLUMNS)


def launch(input, weight, small_weight, output, small_output, precision="ieee", tile=None):
    """Both outputs [N,C,H,W] of one input; all contiguous; the small filter no larger than the other either way."""
    batch, channels, height, width = input.shape
    tile = tile or choose_tile(batch, height, width, weight.shape[3], input.element_size())
    pairs = batch * triton.cdiv(height, tile.rows)
    pair_kernel[(triton.cdiv(pairs, tile.block_m) * triton.cdiv(width, tile.columns), channels)](
        input,
        pack_filter(weight, tile),
        pack_filter(small_weight, tile),
        weight,
        small_weight,
        output,
        small_output,
        batch,
        channels,
        height,
        width,
        *weight.shape[2:],
        *small_weight.shape[2:],
        tile.offset,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        WINDOW=tile.window,
        BLOCK_M=tile.block_m,
        BLOCK_K=tile.block_k,
        ALIGNMENT=min(alignment(tensor) for tensor in (input, output, small_output)),
        PRECISION=precision,
        INDEX=tl.int32 if input.numel() < 2**31 else tl.int64,
        INTERPRETED=triton.knobs.runtime.interpret,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
