"""The Triton-language kernels of the filter's gradient: a matrix product and its reduction (maths: README.md)."""

import triton
import triton.language as tl

from kernels.depthwise_conv2d.product import product


@triton.jit
def load_windows(
    input_ptr,
    k,  # [k] = (n,yb,xb)
    N,
    C,
    H: tl.constexpr,
    W: tl.constexpr,
    FIRST: tl.constexpr,
    STEP_Y: tl.constexpr,
    STEP_X: tl.constexpr,
    SPAN: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Load input[n,c,STEP_Y*yb+t,STEP_X*xb+FIRST+u], u < SPAN: [k,(t,u)], 0 outside the image."""
    BLOCKS_X: tl.constexpr = (W + STEP_X - 1) // STEP_X
    BLOCKS_Y: tl.constexpr = (H + STEP_Y - 1) // STEP_Y
    t = tl.arange(0, STEP_Y * SPAN) // SPAN  # [(t,u)]
    u = tl.arange(0, STEP_Y * SPAN) % SPAN
    row = k // BLOCKS_X  # image and row block
    y = (row % BLOCKS_Y * STEP_Y)[:, None] + t[None, :]
    x = (k % BLOCKS_X * STEP_X + FIRST)[:, None] + u[None, :]
    inside = (row < N * BLOCKS_Y)[:, None] & (y < H) & (x >= 0) & (x < W)
    image = (row // BLOCKS_Y).to(INDEX) * C * (H * W)
    return tl.load(input_ptr + (image[:, None] + y * W + x), mask=inside, other=0.0)


@triton.jit
def grad_weight_kernel(
    grad_ptr,  # [N,C,H,W] contiguous
    input_ptr,  # [N,C,H,W] contiguous
    partial_ptr,  # [SPLIT,C,TAPS*STEP_X,STEP_Y*(WINDOW+EXTRA)] float32
    N,
    C,
    steps,  # of BLOCK_K in a program
    H: tl.constexpr,  # the image's sides are constants: divisions by them are a third of the loop otherwise
    W: tl.constexpr,
    PAD: tl.constexpr,  # min(KH, 2H-1)//2
    OFFSET: tl.constexpr,  # columns that a window begins left of its pixels
    STEP_Y: tl.constexpr,
    STEP_X: tl.constexpr,
    TAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    EXTRA: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    INDEX: tl.constexpr,  # int32 if it can index all elements
):
    """One channel's product over a share of the (image, row block, column block) triples, in float32.

    partial[(a,s),(t,u)] = sum_{n,yb,xb} grad[n,c,STEP_Y*yb+STEP_Y-1+PAD-a,STEP_X*xb+s]
                                       * input[n,c,STEP_Y*yb+t,STEP_X*xb+u-OFFSET]
    Bytes: both images once from memory; from the caches the gradient TAPS/STEP_Y times, the input
    (WINDOW+EXTRA)/STEP_X times.
    """
    BLOCKS_X: tl.constexpr = (W + STEP_X - 1) // STEP_X
    BLOCKS_Y: tl.constexpr = (H + STEP_Y - 1) // STEP_Y
    split = tl.program_id(0)
    c = tl.program_id(1)
    grad_ptr += c.to(tl.int64) * (H * W)
    input_ptr += c.to(tl.int64) * (H * W)

    a = tl.arange(0, TAPS * STEP_X) // STEP_X  # [(a,s)]
    s = tl.arange(0, TAPS * STEP_X) % STEP_X
    acc = tl.zeros((TAPS * STEP_X, STEP_Y * WINDOW), dtype=tl.float32)
    if EXTRA:  # a window of 48 is one of 32 and one of 16
        acc_extra = tl.zeros((TAPS * STEP_X, STEP_Y * EXTRA), dtype=tl.float32)
    # float32: the accumulator is added to a total every four steps; one long running sum loses bits.
    SHORT: tl.constexpr = input_ptr.dtype.element_ty == tl.float32
    if SHORT:
        total = tl.zeros_like(acc)
        if EXTRA:
            total_extra = tl.zeros_like(acc_extra)
    last = tl.minimum((split + 1) * steps, tl.cdiv(N * (BLOCKS_Y * BLOCKS_X), BLOCK_K))
    for step in range(split * steps, last):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)  # [k] = (n,yb,xb)
        row = k // BLOCKS_X
        y = (row % BLOCKS_Y * STEP_Y + (STEP_Y - 1 + PAD))[None, :] - a[:, None]  # [(a,s),k]
        x = (k % BLOCKS_X * STEP_X)[None, :] + s[:, None]
        inside = (row < N * BLOCKS_Y)[None, :] & (y >= 0) & (y < H) & (x < W)
        image = (row // BLOCKS_Y).to(INDEX) * C * (H * W)
        g = tl.load(grad_ptr + (image[None, :] + y * W + x), mask=inside, other=0.0)
        v = load_windows(input_ptr, k, N, C, H, W, -OFFSET, STEP_Y, STEP_X, WINDOW, INDEX)
        acc = product(g, v, acc, PRECISION)
        if EXTRA:
            v = load_windows(input_ptr, k, N, C, H, W, WINDOW - OFFSET, STEP_Y, STEP_X, EXTRA, INDEX)
            acc_extra = product(g, v, acc_extra, PRECISION)
        if SHORT:  # noqa: SIM102 - known at compile time
            if step % 4 == 3:
                total += acc
                acc = tl.zeros_like(acc)
                if EXTRA:
                    total_extra += acc_extra
                    acc_extra = tl.zeros_like(acc_extra)
    if SHORT:
        acc += total
        if EXTRA:
            acc_extra += total_extra

    COLUMNS: tl.constexpr = STEP_Y * (WINDOW + EXTRA)
    partial_ptr += (split * C + c).to(tl.int64) * (TAPS * STEP_X * COLUMNS)
    rows = partial_ptr + (tl.arange(0, TAPS * STEP_X) * COLUMNS)[:, None]
    tl.store(rows + tl.arange(0, STEP_Y * WINDOW)[None, :], acc)
    if EXTRA:
        tl.store(rows + (STEP_Y * WINDOW + tl.arange(0, STEP_Y * EXTRA))[None, :], acc_extra)


@triton.jit
def reduce_kernel(
    partial_ptr,  # [SPLIT,C,TAPS*STEP_X,STEP_Y*(WINDOW+EXTRA)] float32
    grad_ptr,  # [N,C,H,W] contiguous: read only to confine a NaN or an infinity to its own taps
    input_ptr,  # [N,C,H,W] contiguous: likewise
    grad_weight_ptr,  # [C,1,KH,KW] contiguous
    N,
    C,
    H,
    W,
    KH,
    KW,
    skip_y,  # taps above the first that any pixel sees
    skip_x,
    lead,  # columns of a window left of its first tap
    splits,
    STEP_Y: tl.constexpr,
    STEP_X: tl.constexpr,
    TAPS: tl.constexpr,
    WINDOW: tl.constexpr,
    EXTRA: tl.constexpr,
    BLOCK_TAPS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    SUM: tl.constexpr,  # float64 for a float32 gradient: a hundred large numbers are added here
):
    """grad_weight[c,0,i,j] = sum_{split,t,s} partial[split,c,(i-t+STEP_Y-1,s),(t,j+s)], always in this order.

    Bytes: every partial sum once, the gradient once.
    """
    c = tl.program_id(1).to(tl.int64)
    tap = tl.program_id(0) * BLOCK_TAPS + tl.arange(0, BLOCK_TAPS)  # [T]
    i = tap // KW - skip_y
    j = tap % KW - skip_x
    seen = (tap < KH * KW) & (i >= 0) & (i < KH - 2 * skip_y) & (j >= 0) & (j < KW - 2 * skip_x)
    total = tl.zeros((BLOCK_TAPS,), dtype=SUM)
    COLUMNS: tl.constexpr = STEP_Y * (WINDOW + EXTRA)
    for split in range(splits):
        here = partial_ptr + (split * C + c) * (TAPS * STEP_X * COLUMNS)
        for t in range(STEP_Y):
            for s in range(STEP_X):
                row = (i - t + (STEP_Y - 1)) * STEP_X + s
                u = j + s + lead
                column = tl.where(u < WINDOW, t * WINDOW + u, STEP_Y * WINDOW + t * EXTRA + u - WINDOW)
                total += tl.load(here + row * COLUMNS + column, mask=seen, other=0.0).to(SUM)

    if tl.sum((total != total).to(tl.int32)) != 0:  # a NaN or an infinity met a padding zero: sum real pairs only
        plane = H * W
        for lane in range(BLOCK_TAPS):
            this = tl.arange(0, BLOCK_TAPS) == lane
            if tl.sum((this & (total != total)).to(tl.int32)) != 0:
                dy = (tl.program_id(0) * BLOCK_TAPS + lane) // KW - KH // 2
                dx = (tl.program_id(0) * BLOCK_TAPS + lane) % KW - KW // 2
                sums = tl.zeros((BLOCK_PIXELS,), dtype=tl.float32)
                for n in range(N):
                    image = (n * C + c) * plane
                    for first in range(0, plane, BLOCK_PIXELS):
                        p = first + tl.arange(0, BLOCK_PIXELS)  # [P]
                        y = p // W + dy
                        x = p % W + dx
                        inside = (p < plane) & (y >= 0) & (y < H) & (x >= 0) & (x < W)
                        g = tl.load(grad_ptr + image + p, mask=inside, other=0.0).to(tl.float32)
                        v = tl.load(input_ptr + image + y * W + x, mask=inside, other=0.0).to(tl.float32)
                        sums += tl.where(inside, g * v, 0.0)
                total = tl.where(this, tl.sum(sums).to(SUM), total)
    grad_weight_ptr += c * KH * KW
    tl.store(grad_weight_ptr + tap, total.to(grad_weight_ptr.dtype.element_ty), mask=tap < KH * KW)
