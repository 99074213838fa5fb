"""The Triton-language kernels that normalise the target: by a sliding window (SimMIM) or by patch (MAE)."""

# mypy: disallow_untyped_defs=False, check_untyped_defs=False
import torch
import triton
import triton.language as tl

ROW = 128  # pixels of one row in one program
NUM_WARPS = 4


@triton.jit
def window_rows_kernel(
    image_ptr, mean_ptr, square_ptr, C, H, W, stride_b, stride_c, stride_y, stride_x, R, BLOCK: tl.constexpr
):
    """mean and sum((x - mean)^2) of the up to 2R+1 pixels around each pixel in its row, [B,C,H,W] float32."""
    row = tl.program_id(0).to(tl.int64)  # of B*C*H
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    start = row // (C * H) * stride_b + row // H % C * stride_c + row % H * stride_y
    count = (tl.minimum(x + R + 1, W) - tl.maximum(x - R, 0)).to(tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for t in range(-R, R + 1):
        inside = (x + t >= 0) & (x + t < W) & (x < W)
        total += tl.load(image_ptr + start + (x + t).to(tl.int64) * stride_x, mask=inside, other=0.0).to(tl.float32)
    mean = total / count
    square = tl.zeros((BLOCK,), tl.float32)
    for t in range(-R, R + 1):
        inside = (x + t >= 0) & (x + t < W) & (x < W)
        value = tl.load(image_ptr + start + (x + t).to(tl.int64) * stride_x, mask=inside, other=0.0).to(tl.float32)
        square += tl.where(inside, (value - mean) * (value - mean), 0.0)
    tl.store(mean_ptr + row * W + x, mean, mask=x < W)
    tl.store(square_ptr + row * W + x, square, mask=x < W)


@triton.jit
def window_columns_kernel(
    image_ptr,
    mask_ptr,
    mean_ptr,
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
    BLOCK: tl.constexpr,
):
    """(x - mean) / sqrt(var + 1e-6) over the window, its rows' means and squares joined without cancellation.

    sum((x - mean)^2) = sum over rows (square_row + count_x * (mean_row - mean)^2): every term is positive.
    """
    row = tl.program_id(0).to(tl.int64)
    x = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    b, c, y = row // (C * H), row // H % C, row % H
    masked = tl.load(mask_ptr + (b * mask_h + y // P) * mask_w + x // P, mask=x < W, other=0) != 0
    if tl.max(masked.to(tl.int32), 0) != 0:
        top, bottom = tl.maximum(y - R, 0), tl.minimum(y + R + 1, H)
        count_x = (tl.minimum(x + R + 1, W) - tl.maximum(x - R, 0)).to(tl.float32)
        count_y = (bottom - top).to(tl.float32)
        plane = (row - y) * W + x
        mean = tl.zeros((BLOCK,), tl.float32)
        for line in range(top, bottom):
            mean += tl.load(mean_ptr + plane + line * W, mask=masked, other=0.0)
        mean /= count_y
        square = tl.zeros((BLOCK,), tl.float32)
        for line in range(top, bottom):
            gap = tl.load(mean_ptr + plane + line * W, mask=masked, other=0.0) - mean
            square += tl.load(square_ptr + plane + line * W, mask=masked, other=0.0) + count_x * gap * gap
        var = square / tl.maximum(count_x * count_y - 1.0, 1.0)
        source = b * stride_b + c * stride_c + y * stride_y + x.to(tl.int64) * stride_x
        value = tl.load(image_ptr + source, mask=masked, other=0.0).to(tl.float32)
        tl.store(target_ptr + plane + y * W, (value - mean) / tl.sqrt(var + 1e-6), mask=masked)


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
    """target [B,C,H,W] float32 contiguous := the normalised image where masked; elsewhere it is left as it is."""
    batch, channels, height, width = image.shape
    sizes = (channels, height, width)
    grid_size = (mask.shape[1], mask.shape[2])
    patch = height // mask.shape[1]
    if target_norm == "patch":
        size = min(1024, triton.next_power_of_2(channels * patch * patch))
        patch_kernel[(mask.numel(),)](
            image, mask, target, *sizes, *grid_size, *image.stride(), P=patch, BLOCK=size, num_warps=NUM_WARPS
        )
        return
    mean, square = torch.empty_like(target), torch.empty_like(target)
    grid = (batch * channels * height, triton.cdiv(width, ROW))
    window_rows_kernel[grid](image, mean, square, *sizes, *image.stride(), window // 2, BLOCK=ROW, num_warps=NUM_WARPS)
    window_columns_kernel[grid](
        image,
        mask,
        mean,
        square,
        target,
        *sizes,
        *grid_size,
        *image.stride(),
        window // 2,
        P=patch,
        BLOCK=ROW,
        num_warps=NUM_WARPS,
    )
