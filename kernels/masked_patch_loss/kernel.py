"""The Triton-language kernels: the loss with its derivative, its final sum, the backward pass."""

# mypy: disallow_untyped_defs=False, check_untyped_defs=False
import triton
import triton.language as tl

LOSSES = {"l1": 0, "smooth_l1": 1, "l2": 2}
TILE = 2048  # elements of the prediction in one program
NUM_WARPS = 4


@triton.jit
def loss_kernel(
    prediction_ptr,  # [B,K,h,w], K = C*S*S, by the strides below
    target_ptr,  # [B,C,h*S,w*S] by the strides below
    mask_ptr,  # [B,mask_h,mask_w] bytes, contiguous
    direction_ptr,  # [B,K,h,w], the prediction's strides
    sum_ptr,  # [programs] float32
    count_ptr,  # [programs] int32
    K,
    cells,  # B*h*w
    h,
    w,
    mask_h,
    mask_w,
    stride_b,
    stride_k,
    stride_q,
    target_b,
    target_c,
    target_y,
    target_x,
    S: tl.constexpr,
    P: tl.constexpr,
    LOSS: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """A tile of channels k by cells q of the prediction; what is not masked is not read.

    pixel(k, q) = (c, i*S + dy, j*S + dx) with k = (c*S + dy)*S + dx, q = (b, i, j): PixelShuffle(S) undone by index.
    direction = d loss(prediction - target) / d prediction where the pixel's patch is masked, else 0.
    Bytes: masked share of prediction and target read, direction (int8 for l1) written, each once.
    """
    pid = tl.program_id(0).to(tl.int64)
    blocks_k = tl.cdiv(K, BLOCK_K)
    k = (pid % blocks_k).to(tl.int32) * BLOCK_K + tl.arange(0, BLOCK_K)  # [Kb]
    q = (pid // blocks_k) * BLOCK_Q + tl.arange(0, BLOCK_Q)  # [Qb]
    b = q // (h * w)
    cell = (q % (h * w)).to(tl.int32)
    valid = (k < K)[:, None] & (q < cells)[None, :]  # [Kb,Qb]
    y = (cell // w * S)[None, :] + (k // S % S)[:, None]
    x = (cell % w * S)[None, :] + (k % S)[:, None]
    masked = tl.load(mask_ptr + (b * mask_h)[None, :] * mask_w + y // P * mask_w + x // P, mask=valid, other=0) != 0

    offset = (b * stride_b)[None, :] + k.to(tl.int64)[:, None] * stride_k + cell.to(tl.int64)[None, :] * stride_q
    source = (b * target_b)[None, :] + (k // (S * S)).to(tl.int64)[:, None] * target_c
    source += y.to(tl.int64) * target_y + x.to(tl.int64) * target_x
    prediction = tl.load(prediction_ptr + offset, mask=masked, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + source, mask=masked, other=0.0).to(tl.float32)
    d = prediction - target  # 0 where nothing was read
    if LOSS == 0:
        value = tl.abs(d)
        direction = (d > 0).to(tl.float32) - (d < 0).to(tl.float32)
    elif LOSS == 1:
        near = tl.abs(d) < 1.0
        value = tl.where(near, 0.5 * d * d, tl.abs(d) - 0.5)
        direction = tl.where(near, d, tl.where(d > 0, 1.0, -1.0))
    else:
        value = d * d
        direction = 2.0 * d
    if GRADIENT:
        tl.store(direction_ptr + offset, direction.to(direction_ptr.dtype.element_ty), mask=valid)
    tl.store(sum_ptr + pid, tl.sum(tl.sum(value, 1), 0))
    tl.store(count_ptr + pid, tl.sum(tl.sum(masked.to(tl.int32), 1), 0))


@triton.jit
def finish_kernel(sum_ptr, count_ptr, loss_ptr, scale_ptr, programs, C, BLOCK: tl.constexpr):
    """One program: loss = sum / (pixels + 1e-5) / C and scale = 1 / (pixels + 1e-5) / C, summed in float64."""
    total = tl.zeros((BLOCK,), tl.float64)
    count = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, programs, BLOCK):
        index = start + tl.arange(0, BLOCK)
        total += tl.load(sum_ptr + index, mask=index < programs, other=0.0).to(tl.float64)
        count += tl.load(count_ptr + index, mask=index < programs, other=0).to(tl.int64)
    scale = 1.0 / (tl.sum(count, 0).to(tl.float64) / C + 1e-5) / C
    tl.store(loss_ptr, (tl.sum(total, 0) * scale).to(tl.float32))
    tl.store(scale_ptr, scale.to(tl.float32))


@triton.jit
def backward_kernel(direction_ptr, grad_loss_ptr, scale_ptr, grad_ptr, size, BLOCK: tl.constexpr):
    """grad[n] = direction[n] * (grad_loss * scale). Bytes: direction read and grad written once."""
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(grad_loss_ptr).to(tl.float32) * tl.load(scale_ptr)
    value = tl.load(direction_ptr + n, mask=n < size, other=0).to(tl.float32) * factor
    tl.store(grad_ptr + n, value.to(grad_ptr.dtype.element_ty), mask=n < size)


def tile(channels):
    """(BLOCK_K, BLOCK_Q) for a prediction of `channels`: 32 by 64 unless there are fewer channels."""
    block_k = min(32, triton.next_power_of_2(channels))
    return block_k, TILE // block_k


def programs(prediction):
    batch, channels, h, w = prediction.shape
    block_k, block_q = tile(channels)
    return triton.cdiv(channels, block_k) * triton.cdiv(batch * h * w, block_q)


def launch(prediction, target, mask, direction, sums, counts, result, scale, loss):
    """Fill direction (None: no gradient), sums, counts [programs], result and scale [].

    prediction: contiguous or channels_last; direction: its strides; mask: bytes, contiguous, [B,h',w'].
    """
    batch, channels, h, w = prediction.shape
    cells = h * w
    stride_k, stride_q = (cells, 1) if prediction.is_contiguous() else (1, channels)
    block_k, block_q = tile(channels)
    grid = (programs(prediction),)
    loss_kernel[grid](
        prediction,
        target,
        mask,
        prediction if direction is None else direction,
        sums,
        counts,
        channels,
        batch * cells,
        h,
        w,
        mask.shape[1],
        mask.shape[2],
        channels * cells,
        stride_k,
        stride_q,
        *target.stride(),
        S=target.shape[2] // h,
        P=target.shape[2] // mask.shape[1],
        LOSS=LOSSES[loss],
        GRADIENT=direction is not None,
        BLOCK_K=block_k,
        BLOCK_Q=block_q,
        num_warps=NUM_WARPS,
    )
    finish_kernel[(1,)](sums, counts, result, scale, grid[0], target.shape[1], BLOCK=1024, num_warps=NUM_WARPS)


def launch_backward(direction, grad_loss, scale, grad):
    """grad := direction * grad_loss * scale; both dense, of the same strides."""
    grid = (triton.cdiv(grad.numel(), 1024),)
    backward_kernel[grid](direction, grad_loss, scale, grad, grad.numel(), BLOCK=1024, num_warps=NUM_WARPS)
