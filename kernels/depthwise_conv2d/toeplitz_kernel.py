"""The tensor-core kernel: a depthwise convolution as one Toeplitz matrix product a channel (maths: README.md)."""

import triton
import triton.language as tl

from kernels.depthwise_conv2d.activation import activate
from kernels.depthwise_conv2d.product import product


@triton.jit
def window_place(begin, eights, inverse, skipped, BLOCK_K: tl.constexpr):
    """Return (row r, window column u) of BLOCK_K elements from `begin` on; 8 * eights columns of a window are used."""
    eighth = begin // 8 + tl.arange(0, BLOCK_K) // 8  # [K]
    r = (eighth * inverse) >> 20  # eighth // eights, for filters of up to dispatch.LARGEST_SIDE
    return r, (skipped + eighth - r * eights) * 8 + tl.arange(0, BLOCK_K) % 8


@triton.jit
def toeplitz_kernel(
    input_ptr,  # [N,C,H,W] contiguous
    packed_ptr,  # [C,PLANES,WINDOW,COLUMNS]
    weight_ptr,  # [C,1,KH,KW] contiguous: read only to confine a NaN or an infinity to its own outputs
    bias_ptr,  # [C]; not read unless has_bias
    output_ptr,  # [N,C,H,W] contiguous
    N,
    C,
    H,
    W,
    KH,
    KW,
    offset,
    planes,
    log_images,  # a program's BLOCK_M rows are 2^log_images images of each of its row blocks
    has_bias,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ALIGNMENT: tl.constexpr,  # of every run of pixels, in elements,
    ROW_ALIGNMENT: tl.constexpr,  # and every row
    FLAT: tl.constexpr,  # WINDOW is W, which COLUMNS holds: a window is a run of whole rows
    FLIP: tl.constexpr,  # `packed` is turned by 180 degrees, `weight` is not yet
    PRECISION: tl.constexpr,
    ACTIVATION: tl.constexpr,  # a value of activation.ACTIVATIONS
    INDEX: tl.constexpr,  # int32 if it can index all elements: half the registers
    CACHED: tl.constexpr,  # elements of a copy of `packed` that goes through the L1 cache; 0: none does
):
    """Output tiles of ROWS x COLUMNS pixels of BLOCK_M (row block, image) pairs of one channel, in float32.

    acc[(block,n),(y,x)] = sum_{r,u} input[n,c,y0+r-KH//2,x0+u-offset] * packed[c,r-y+ROWS-1,u,x]
    Rows r, and columns u in groups of 8, are skipped if they are outside the image for the whole tile. Bytes: the input
    once from memory and about (1 + KH/ROWS)(WINDOW/COLUMNS) times from the L2 cache, the packed filter once per tile
    from the L2 cache.
    """
    # The divisions tell the compiler the alignment of W, pixels and offset; tl.multiple_of on an argument does not.
    W = (WINDOW if FLAT else W) // ROW_ALIGNMENT * ROW_ALIGNMENT
    pixels = H * W // ALIGNMENT * ALIGNMENT
    offset = offset // 8 * 8
    c = tl.program_id(1).to(tl.int64)
    input_ptr += c * pixels
    output_ptr += c * pixels

    tiles_x = tl.cdiv(W, COLUMNS)
    x0 = (tl.program_id(0) % tiles_x) * COLUMNS
    group = tl.program_id(0) // tiles_x
    blocks = BLOCK_M >> log_images
    groups_y = tl.cdiv(tl.cdiv(H, ROWS), blocks)
    first_y = (group % groups_y) * (blocks * ROWS)
    m = tl.arange(0, BLOCK_M)  # [M], images of one row block side by side
    y0 = first_y + (m >> log_images) * ROWS  # [M]
    n = (group // groups_y << log_images) + (m & ((1 << log_images) - 1))  # [M]
    image = n.to(INDEX) * C * pixels  # [M]
    real = n < N
    last_y = tl.minimum(first_y + (blocks - 1) * ROWS, (H - 1) // ROWS * ROWS)
    r_begin = tl.maximum(0, KH // 2 - last_y)
    r_end = tl.minimum(KH + ROWS - 1, H + KH // 2 - first_y)

    o = tl.arange(0, ROWS * COLUMNS)  # [O] pixels of the tile, row by row
    yo = o // COLUMNS
    xo = o % COLUMNS
    # packed[c,r-yo+ROWS-1,u,xo] is (r * WINDOW + u) * COLUMNS elements after the output's pointer
    packed = packed_ptr + c * planes * (WINDOW * COLUMNS)
    packed += ((ROWS - 1 - yo) * (WINDOW * COLUMNS) + xo)[None, :]  # [1,O]
    if FLAT:
        lead = tl.cdiv(KH // 2 * W, ALIGNMENT) * ALIGNMENT  # a run begins at a whole vector,
        early = lead - KH // 2 * W  # pixels before the window
        start = y0 * W - lead  # [M]
        begin = (r_begin * W + early) // ALIGNMENT * ALIGNMENT
        end = r_end * W + early
    else:
        skipped = tl.maximum(0, offset - x0) // 8  # groups of 8 columns of a window left of the image
        eights = tl.minimum(WINDOW, tl.cdiv(W - x0 + offset, 8) * 8) // 8 - skipped  # groups in the image
        inverse = (1 << 20) // eights + 1
        begin = r_begin * eights * 8
        end = r_end * eights * 8

    acc = tl.zeros((BLOCK_M, ROWS * COLUMNS), dtype=tl.float32)
    for place in range(begin, end, BLOCK_K):
        if FLAT:
            k = place // ALIGNMENT * ALIGNMENT + tl.arange(0, BLOCK_K)  # [K]
            at = start[:, None] + k[None, :]  # [M,K]
            mask = real[:, None] & (at >= 0) & (at < pixels)
            f = k - early
        else:
            r, u = window_place(place, eights, inverse, skipped, BLOCK_K)
            y = y0[:, None] + r[None, :] - KH // 2  # [M,K]
            x = x0 - offset + u  # [K]
            seen = (r < r_end) & (x >= 0) & (x < W)
            mask = real[:, None] & seen[None, :] & (y >= 0) & (y < H)
            at = y * W + x[None, :]
            f = r * WINDOW + u
        a = tl.load(input_ptr + (image[:, None] + at), mask=mask, other=0.0)
        taps = packed + (f * COLUMNS)[:, None]  # [K,O]
        known = ((f >= 0) & (f < r_end * WINDOW))[:, None]
        if CACHED == 0:
            b = tl.load(taps, mask=known, other=0.0)
        else:  # its rows of taps are the same run, shifted: the L1 cache has most of it
            b = tl.load(tl.max_contiguous(taps, [1, CACHED]), mask=known, other=0.0, cache_modifier=".ca")
        acc = product(a, b, acc, PRECISION)

    bias = tl.load(bias_ptr + c, mask=has_bias != 0, other=0.0).to(tl.float32)
    broken = tl.sum((acc != acc).to(tl.int32))
    if broken == 0:
        y = y0[:, None] + yo[None, :]  # [M,O]
        x = x0 + xo[None, :]
        mask = real[:, None] & (y < H) & (x < W)
        value = activate(acc + bias, ACTIVATION).to(output_ptr.dtype.element_ty)
        tl.store(output_ptr + (image[:, None] + y * W + x), value, mask=mask)
    else:  # a NaN or an infinity met one of the Toeplitz matrix's zeros: sum again, over real taps only
        for pixel in range(ROWS * COLUMNS):
            y = y0 + pixel // COLUMNS  # [M]
            x = x0 + pixel % COLUMNS + 0 * y
            sums = tl.zeros((BLOCK_M,), dtype=tl.float32)
            for tap in range(KH * KW):
                row = y + (tap // KW - KH // 2)
                column = x + (tap % KW - KW // 2)
                inside = real & (row >= 0) & (row < H) & (column >= 0) & (column < W)
                value = tl.load(input_ptr + (image + row * W + column), mask=inside, other=0.0)
                this = tap
                if FLIP:
                    this = KH * KW - 1 - tap
                weight = tl.load(weight_ptr + c * KH * KW + this)
                sums += tl.where(inside, value.to(tl.float32) * weight.to(tl.float32), 0.0)
            value = activate(sums + bias, ACTIVATION).to(output_ptr.dtype.element_ty)
            tl.store(output_ptr + (image + y * W + x), value, mask=real & (y < H) & (x < W))
