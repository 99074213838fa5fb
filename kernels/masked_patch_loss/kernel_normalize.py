"""The Triton-language kernels that normalise the target: by a sliding window (SimMIM) or by patch (MAE)."""

import torch
import triton
import triton.language as tl

PREFIX_TILE = 1024  # pixels whose prefix sums a program computes
COLUMNS, ROWS = 64, 64  # of a program that slides the window
NUM_WARPS, COLUMN_WARPS = 4, 2


@triton.jit
def prefix_kernel(
    image_ptr,
    sum_ptr,  # [B,C,H,W] float64
    square_ptr,  # [B,C,H,W] float64
    rows,  # B*C*H
    C,
    H,
    W,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """sum[r,x] = sum(image[r,:x+1]), square[r,x] = sum(image[r,:x+1]^2). Bytes: the image read, 16 a pixel written."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_Y + tl.arange(0, BLOCK_Y)
    x = tl.arange(0, BLOCK_X)
    valid = (row < rows)[:, None] & (x < W)[None, :]
    source = row // (C * H) * stride_b + row // H % C * stride_c + row % H * stride_y
    value = tl.load(image_ptr + source[:, None] + (x.to(tl.int64) * stride_x)[None, :], mask=valid, other=0.0)
    value = value.to(tl.float64)
    place = (row * W)[:, None] + x[None, :]
    tl.store(sum_ptr + place, tl.cumsum(value, 1), mask=valid)
    tl.store(square_ptr + place, tl.cumsum(value * value, 1), mask=valid)


@triton.jit
def between(prefix_ptr, line, H, W, left, right):
    """Return prefix[line,right] - prefix[line,left], where prefix[line,-1] is 0; 0 for a line outside the image."""
    lines = line + tl.zeros_like(left)
    inside = (lines >= 0) & (lines < H)
    upper = tl.load(prefix_ptr + line * W + right, mask=inside, other=0.0)
    return upper - tl.load(prefix_ptr + line * W + left, mask=inside & (left >= 0), other=0.0)


@triton.jit
def window_kernel(
    image_ptr,
    mask_ptr,
    sum_ptr,
    square_ptr,
    target_ptr,  # [B,C,H,W] float32, written where masked
    C,
    H,
    W,
    mask_h,
    mask_w,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    R,
    P: tl.constexpr,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
):
    """(x - mean) / sqrt(var + 1e-6) over the window, which slides down BLOCK_Y rows of BLOCK_X columns.

    s = sum(x) and t = sum(x^2) over the n pixels of a window, in float64: x - mean = (n x - s) / n and
    var = (n t - s^2) / (n (n - 1)). Each step adds a row and subtracts one, both as differences of prefix sums.
    """
    plane = tl.program_id(0).to(tl.int64)  # of B*C
    x = tl.program_id(1) * BLOCK_X + tl.arange(0, BLOCK_X)
    first = tl.program_id(2) * BLOCK_Y
    b, c = plane // C, plane % C
    left, right = tl.minimum(x - R - 1, W - 1), tl.minimum(x + R, W - 1)
    count_x = tl.maximum(right - tl.maximum(left, -1), 1)
    sum_ptr += plane * H * W
    square_ptr += plane * H * W
    total = tl.zeros((BLOCK_X,), tl.float64)
    square = tl.zeros((BLOCK_X,), tl.float64)
    for line in range(tl.maximum(first - R - 1, 0), tl.minimum(first + R, H)):
        total += between(sum_ptr, line, H, W, left, right)
        square += between(square_ptr, line, H, W, left, right)
    for y in range(first, tl.minimum(first + BLOCK_Y, H)):
        enter, leave = y + R, y - R - 1
        total += between(sum_ptr, enter, H, W, left, right)
        square += between(square_ptr, enter, H, W, left, right)
        total -= between(sum_ptr, leave, H, W, left, right)
        square -= between(square_ptr, leave, H, W, left, right)
        masked = tl.load(mask_ptr + (b * mask_h + y // P) * mask_w + x // P, mask=x < W, other=0) != 0
        source = b * stride_b + c * stride_c + y * stride_y + x.to(tl.int64) * stride_x
        value = tl.load(image_ptr + source, mask=masked, other=0.0).to(tl.float64)
        count = count_x * (tl.minimum(enter, H - 1) - tl.maximum(leave, -1))
        n = count.to(tl.float64)
        gap = (value * n - total).to(tl.float32) / count.to(tl.float32)
        pairs = (n * tl.maximum(n - 1.0, 1.0)).to(tl.float32)
        var = tl.maximum(n * square - total * total, 0.0).to(tl.float32) / pairs
        tl.store(target_ptr + (plane * H + y) * W + x, gap / tl.sqrt(var + 1e-6), mask=masked)


@triton.jit
def patch_kernel(
    image_ptr,
    mask_ptr,
    target_ptr,  # [B,C,H,W] float32, written where masked
    C,
    H,
    W,
    mask_h,
    mask_w,
    stride_b,
    stride_c,
    stride_y,
    stride_x,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(x - mean) / sqrt(var + 1e-6) over the pixels and channels of one patch, unbiased variance, in two passes."""
    pid = tl.program_id(0).to(tl.int64)  # of B*mask_h*mask_w
    if tl.load(mask_ptr + pid) != 0:
        b = pid // (mask_h * mask_w)
        top, left = pid // mask_w % mask_h * P, pid % mask_w * P
        size = C * P * P
        total = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, size, BLOCK):
            e = start + tl.arange(0, BLOCK)
            c, y, x = e // (P * P), top + e // P % P, left + e % P
            source = b * stride_b + c * stride_c + y * stride_y + x * stride_x
            total += tl.load(image_ptr + source, mask=e < size, other=0.0).to(tl.float32)
        mean = tl.sum(total, 0) / size
        square = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, size, BLOCK):
            e = start + tl.arange(0, BLOCK)
            c, y, x = e // (P * P), top + e // P % P, left + e % P
            source = b * stride_b + c * stride_c + y * stride_y + x * stride_x
            gap = tl.load(image_ptr + source, mask=e < size, other=0.0).to(tl.float32) - mean
            square += tl.where(e < size, gap * gap, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(square, 0) / tl.maximum(size - 1, 1) + 1e-6)
        for start in range(0, size, BLOCK):
            e = start + tl.arange(0, BLOCK)
            c, y, x = e // (P * P), top + e // P % P, left + e % P
            source = b * stride_b + c * stride_c + y * stride_y + x * stride_x
            value = tl.load(image_ptr + source, mask=e < size, other=0.0).to(tl.float32)
            tl.store(target_ptr + ((b * C + c) * H + y) * W + x, (value - mean) * scale, mask=e < size)


def launch_normalization(image, mask, target, target_norm, window):
    """target [B,C,H,W] float32 contiguous := the normalised image where masked; elsewhere it is unchanged."""
    batch, channels, height, width = image.shape
    sizes = (channels, height, width)
    grid_size = (mask.shape[1], mask.shape[2])
    patch = height // mask.shape[1]
    if target_norm == "patch":
        size = min(1024, triton.next_power_of_2(channels * patch * patch))
        patch_kernel[(mask.numel(),)](
            image,
            mask,
            target,
            *sizes,
            *grid_size,
            *image.stride(),
            P=patch,
            BLOCK=size,
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,
        )
        return
    sums, squares = (torch.empty(image.shape, dtype=torch.float64, device=image.device) for _ in range(2))
    block_x = triton.next_power_of_2(width)
    block_y, rows = max(1, PREFIX_TILE // block_x), batch * channels * height
    prefix_kernel[(triton.cdiv(rows, block_y),)](
        image,
        sums,
        squares,
        rows,
        *sizes,
        *image.stride(),
        BLOCK_Y=block_y,
        BLOCK_X=block_x,
        num_warps=NUM_WARPS,
        enable_fp_fusion=True,
    )
    grid = (batch * channels, triton.cdiv(width, COLUMNS), triton.cdiv(height, ROWS))
    window_kernel[grid](
        image,
        mask,
        sums,
        squares,
        target,
        *sizes,
        *grid_size,
        *image.stride(),
        window // 2,
        P=patch,
        BLOCK_Y=ROWS,
        BLOCK_X=COLUMNS,
        num_warps=COLUMN_WARPS,
        enable_fp_fusion=True,
    )
