"""The Triton-language kernels of the loss with its derivative, and of its final sum."""

import triton
import triton.language as tl

LOSSES = {"l1": 0, "smooth_l1": 1, "l2": 2}
PARTS = 4  # two bits each in a byte
TILE = {False: 2048, True: 256}  # elements of a part of a program's tile, by channels_last
NUM_WARPS = {False: 8, True: 4}  # True: both tensors are read in vectors (channels_last, target of contiguous rows)
MOST_PROGRAMS = 4096  # of a contiguous prediction, so that finish_kernel adds their sums in one pass


@triton.jit
def along(channels, cells, CHANNELS_LAST: tl.constexpr):
    """Return both vectors with one more axis, to broadcast to a tile [Q,K] in channels_last, else [K,Q]."""
    return (channels[None, :], cells[:, None]) if CHANNELS_LAST else (channels[:, None], cells[None, :])


@triton.jit
def read(
    prediction_q,  # [Q] pointers to channel 0 of the cells
    target_q,  # [Q] pointers to the cells' first pixels
    mask_q,  # [Q] pointers to the mask's first elements in the cells
    masked,  # [Q]
    valid,  # [tile]
    k,
    target_c,
    target_y,
    target_x,
    mask_y,
    mask_x,
    C: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    STRIDE_K: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Return prediction - target at channels k of the cells (0 where not masked), the channels' offsets and validity.

    In a contiguous prediction masked and unmasked cells share sectors: all of it is read, in vectors.
    """
    dy, dx = k // S % S, k % S
    channel, prediction_q = along(k * STRIDE_K, prediction_q, CHANNELS_LAST)
    pixel, target_q = along(k // (S * S) * target_c + dy * target_y + dx * target_x, target_q, CHANNELS_LAST)
    within, masked = along(k < C * S * S, masked, CHANNELS_LAST)
    valid = valid & within
    if P < S:
        place, mask_q = along(dy // P * mask_y + dx // P * mask_x, mask_q, CHANNELS_LAST)
        masked = tl.load(mask_q + place, mask=valid, other=0) != 0
    masked = masked & valid
    prediction = tl.load(prediction_q + channel, mask=masked if CHANNELS_LAST else valid, other=0.0)
    target = tl.load(target_q + pixel, mask=masked, other=0.0)
    d = prediction.to(tl.float32) - target.to(tl.float32)
    return d if CHANNELS_LAST else tl.where(masked, d, 0.0), channel, valid


@triton.jit
def value(d, LOSS: tl.constexpr):
    size = tl.abs(d)
    if LOSS == 0:
        result = size
    elif LOSS == 1:
        result = tl.where(size < 1.0, 0.5 * d * d, size - 0.5)
    else:
        result = d * d
    return result


@triton.jit
def put(unscaled_grad_q, channel, valid, d, LOSS: tl.constexpr):
    """Store the derivative of smooth_l1, or half that of l2, which float16 holds: the scale has the factor 2."""
    unscaled_grad = tl.where(d > 1.0, 1.0, tl.where(d < -1.0, -1.0, d)) if LOSS == 1 else d  # keeps a NaN
    tl.store(unscaled_grad_q + channel, unscaled_grad.to(unscaled_grad_q.dtype.element_ty), mask=valid)


@triton.jit
def sign_code(d, PART: tl.constexpr):
    return tl.where(d > 0, 1 << (2 * PART), 0) | tl.where(d < 0, 2 << (2 * PART), 0)


@triton.jit
def loss_kernel(
    prediction_ptr,  # [B,C*S*S,h,w], contiguous or channels_last
    target_ptr,  # [B,C,h*S,w*S] by the strides below
    mask_ptr,  # [B,h*S/P,w*S/P] by the strides below; any type
    unscaled_grad_ptr,  # l1: [B,cdiv(C*S,4)*S,h,w] uint8; else as the prediction; in its memory format
    sum_ptr,  # [programs] float32
    count_ptr,  # [blocks of cells] int32, masked pixels
    batch,
    target_b,
    target_c,
    target_y,
    target_x,
    mask_b,
    mask_y,
    mask_x,
    C: tl.constexpr,
    h: tl.constexpr,
    w: tl.constexpr,
    S: tl.constexpr,
    P: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    LOSS: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    STEPS: tl.constexpr,
):
    """Sum the loss and store its derivative for cells q and channels g + t*G of the prediction, G = cdiv(C*S, 4) * S.

    pixel(k, q) = (c, i*S + dy, j*S + dx) with k = (c*S + dy)*S + dx, q = (b, i, j): PixelShuffle(S) undone by index.
    l1: bits 2t, 2t + 1 of byte (g, q) of the unscaled gradient are the sign at channel g + t*G: 1 is +, 2 is -, 0 is 0
    or unmasked.
    Bytes: masked share of the target read, and of the prediction (all of a contiguous one); a quarter byte written.
    """
    CELLS: tl.constexpr = h * w
    K: tl.constexpr = C * S * S
    G: tl.constexpr = (C * S + 3) // 4 * S
    SHAPE: tl.constexpr = (BLOCK_Q, BLOCK_K) if CHANNELS_LAST else (BLOCK_K, BLOCK_Q)
    STRIDE_K: tl.constexpr = 1 if CHANNELS_LAST else CELLS
    STRIDE_Q: tl.constexpr = K if CHANNELS_LAST else 1
    DEPTH: tl.constexpr = G if LOSS == 0 else K  # channels of the unscaled gradient
    SPLITS: tl.constexpr = (G + BLOCK_K * STEPS - 1) // (BLOCK_K * STEPS)
    pid = tl.program_id(0)
    first = pid % SPLITS * (BLOCK_K * STEPS)
    q = pid // SPLITS * BLOCK_Q + tl.arange(0, BLOCK_Q)
    inside = q < batch * CELLS
    b, cell = (q // CELLS).to(tl.int64), q % CELLS
    i, j = cell // w, cell % w
    mask_q = mask_ptr + (b * mask_b + (i * S // P * mask_y + j * S // P * mask_x))
    if P < S:
        SIDE: tl.constexpr = S // P
        part = tl.arange(0, triton.next_power_of_2(SIDE * SIDE))[:, None]
        place = part // SIDE * mask_y + part % SIDE * mask_x
        found = tl.load(mask_q[None, :] + place, mask=inside[None, :] & (part < SIDE * SIDE), other=0)
        masked = inside
        pixels = tl.sum((found != 0).to(tl.int32)) * (P * P)
    else:
        masked = tl.load(mask_q, mask=inside, other=0) != 0
        pixels = tl.sum(masked.to(tl.int32)) * (S * S)
    if first == 0:
        tl.store(count_ptr + pid // SPLITS, pixels)
    steps = STEPS
    if BLOCK_Q == 1:
        steps = tl.where(pixels == 0, 0, STEPS)

    prediction_q = prediction_ptr + (b * (K * CELLS) + cell * STRIDE_Q)
    target_q = target_ptr + (b * target_b + (i * S * target_y + j * S * target_x))
    unscaled_grad_q = unscaled_grad_ptr + (b * (DEPTH * CELLS) + cell * (DEPTH if CHANNELS_LAST else 1))
    unscaled_grad_q = along(q, unscaled_grad_q, CHANNELS_LAST)[1]
    total = tl.zeros(SHAPE, tl.float32)
    for step in range(0, steps):
        g = first + step * BLOCK_K + tl.arange(0, BLOCK_K)
        in_g, in_q = along(g < G, inside, CHANNELS_LAST)
        valid = in_g & in_q
        # All four reads come before any store: the compiler moves no load across one.
        d0, k0, valid0 = read(
            prediction_q, target_q, mask_q, masked, valid, g,
            target_c, target_y, target_x, mask_y, mask_x, C, S, P, STRIDE_K, CHANNELS_LAST,
        )  # fmt: skip
        d1, k1, valid1 = read(
            prediction_q, target_q, mask_q, masked, valid, g + G,
            target_c, target_y, target_x, mask_y, mask_x, C, S, P, STRIDE_K, CHANNELS_LAST,
        )  # fmt: skip
        d2, k2, valid2 = read(
            prediction_q, target_q, mask_q, masked, valid, g + 2 * G,
            target_c, target_y, target_x, mask_y, mask_x, C, S, P, STRIDE_K, CHANNELS_LAST,
        )  # fmt: skip
        d3, k3, valid3 = read(
            prediction_q, target_q, mask_q, masked, valid, g + 3 * G,
            target_c, target_y, target_x, mask_y, mask_x, C, S, P, STRIDE_K, CHANNELS_LAST,
        )  # fmt: skip
        total += (value(d0, LOSS) + value(d1, LOSS)) + (value(d2, LOSS) + value(d3, LOSS))
        if GRADIENT and LOSS == 0:
            code = sign_code(d0, 0) | sign_code(d1, 1) | sign_code(d2, 2) | sign_code(d3, 3)
            tl.store(unscaled_grad_q + k0, code.to(tl.uint8), mask=valid)
        elif GRADIENT:
            put(unscaled_grad_q, k0, valid0, d0, LOSS)
            put(unscaled_grad_q, k1, valid1, d1, LOSS)
            put(unscaled_grad_q, k2, valid2, d2, LOSS)
            put(unscaled_grad_q, k3, valid3, d3, LOSS)
    if GRADIENT and BLOCK_Q == 1:
        zero = tl.zeros(SHAPE, unscaled_grad_ptr.dtype.element_ty)
        for step in range(steps, STEPS):
            g = first + step * BLOCK_K + tl.arange(0, BLOCK_K)
            for t in tl.static_range(1 if LOSS == 0 else 4):
                k = g + t * G
                place_k, to_q = along(k * STRIDE_K, inside, CHANNELS_LAST)
                to_k, _ = along((g < G) & (k < K), inside, CHANNELS_LAST)
                tl.store(unscaled_grad_q + place_k, zero, mask=to_k & to_q)
    tl.store(sum_ptr + pid, tl.sum(total))


@triton.jit
def finish_kernel(sum_ptr, count_ptr, loss_ptr, scale_ptr, sums, counts, C, LOSS: tl.constexpr, BLOCK: tl.constexpr):
    """Compute loss = sum / (pixels + 1e-5) / C, scale = (2 for l2, else 1) / (pixels + 1e-5) / C in float64."""
    total = tl.zeros((BLOCK,), tl.float64)
    pixels = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, sums, BLOCK):
        index = start + tl.arange(0, BLOCK)
        total += tl.load(sum_ptr + index, mask=index < sums, other=0.0).to(tl.float64)
        pixels += tl.load(count_ptr + index, mask=index < counts, other=0).to(tl.int64)  # no more than sums
    scale = 1.0 / (tl.sum(pixels, 0).to(tl.float64) + 1e-5) / C
    tl.store(loss_ptr, (tl.sum(total, 0) * scale).to(tl.float32))
    tl.store(scale_ptr, (2.0 * scale if LOSS == 2 else scale).to(tl.float32))
