"""The loss with PyTorch's own operations, for the CPU, and for float64 on a GPU."""

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_patch_loss_vectorized(
    prediction: Tensor,
    image: Tensor,
    mask: Tensor,
    loss: str,
    target_norm: str,
    window: int,
    unscaled_grad: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Fill `unscaled_grad` unless it is empty; return the loss and the scale of its gradient, both [] of `dtype`.

    Images are computed one by one, so that intermediate results stay in the cache.
    """
    channels, height = image.shape[1:3]
    h, w = prediction.shape[2:]
    stride, patch = height // h, height // mask.shape[1]
    masked = mask != 0
    by_cell = patch % stride == 0  # then a cell is masked as a whole or not at all: only masked ones are computed
    sums = []
    for b in range(len(image)):
        target = image[b].to(dtype)
        if target_norm != "none":
            mean, std = target_statistics(target, target_norm, patch, window)
            target = ((target - mean) / std).to(dtype)
        cells = target.reshape(channels, h, stride, w, stride)
        out = unscaled_grad[b] if unscaled_grad.numel() else None
        if by_cell:
            chosen = repeat_patches(masked[b], patch // stride).flatten().nonzero().squeeze(1)  # [n] cells
            rows = prediction[b].permute(1, 2, 0).view(h * w, -1)  # [h*w,C*s*s]
            wanted = cells[:, chosen // w, :, chosen % w, :].flatten(1)  # [n,C*s*s]
            d = rows[chosen].to(dtype) - wanted
            sums.append(_sum(d, loss))
            if out is not None:
                out.zero_()
                out.permute(1, 2, 0).view(h * w, -1)[chosen] = _derivative(d, loss).to(out.dtype)
            continue
        shape = (channels, stride, stride, h, w)
        pixels = repeat_patches(masked[b], patch).view(h, stride, w, stride).permute(1, 3, 0, 2)  # [s,s,h,w]
        d = prediction[b].reshape(shape).to(dtype) - cells.permute(0, 2, 4, 1, 3)  # [C,s,s,h,w]
        d = torch.where(pixels, d, 0)
        sums.append(_sum(d, loss))
        if out is not None:
            out.copy_(_derivative(d, loss).reshape(out.shape))
    count = masked.sum().to(torch.float64) * patch**2
    scale = 1 / (count + 1e-5) / channels
    total = torch.stack(sums).double().sum() * scale
    return total.to(dtype), (2 * scale if loss == "l2" else scale).to(dtype)


def backward_vectorized(unscaled_grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return unscaled_grad * factor, rounded to `dtype`, with the strides of `unscaled_grad`."""
    return (unscaled_grad.to(factor.dtype) * factor).to(dtype)


def target_statistics(image: Tensor, target_norm: str, patch: int, window: int) -> tuple[Tensor, Tensor]:
    """Return the mean and sqrt(var + 1e-6) to normalise each pixel, var unbiased: two [...,C,H,W], C = 1 for "patch".

    "window": over the part of the window inside the image, by channel, in float64, from sums about the image's mean:
    the variance is accurate to 1e-10 of the contrast. "patch": over each patch x patch square, all channels.
    """
    *batch, channels, height, width = image.shape
    if target_norm == "patch":
        squares = image.reshape(*batch, channels, height // patch, patch, width // patch, patch)
        var, mean = torch.var_mean(squares, dim=(-5, -3, -1), correction=min(1, channels * patch**2 - 1))  # [...,h',w']
        return repeat_patches(mean, patch).unsqueeze(-3), repeat_patches((var + 1e-6).sqrt(), patch).unsqueeze(-3)
    centre = image.double().mean((-2, -1), keepdim=True)
    x = image.double() - centre
    count = window_sums(x.new_ones(1, height, width), window)
    mean = window_sums(x, window) / count
    var = (window_sums(x.square(), window) / count - mean.square()) * (count / (count - 1).clamp(min=1))
    return mean + centre, (var.clamp(min=0) + 1e-6).sqrt()


def window_sums(x: Tensor, window: int) -> Tensor:
    """Return the sums [...,H,W] over the window around each pixel, cut off at the border.

    They are products with bands of ones: as fast as prefix sums, whose cumsum has no deterministic form on a GPU.
    """
    rows, columns = (torch.arange(size, device=x.device) for size in x.shape[-2:])
    above, beside = ((place[:, None] - place).abs() <= window // 2 for place in (rows, columns))
    return above.to(x.dtype) @ x @ beside.to(x.dtype)


def repeat_patches(patches: Tensor, times: int) -> Tensor:
    """Repeat each element along both axes: [...,h,w] -> [...,h*times,w*times]."""
    return patches.repeat_interleave(times, -2).repeat_interleave(times, -1)


def _sum(d: Tensor, loss: str) -> Tensor:
    if loss == "smooth_l1":
        return F.smooth_l1_loss(d, d.new_zeros(()).expand_as(d), reduction="sum")
    return d.abs().sum() if loss == "l1" else d.square().sum()


def _derivative(d: Tensor, loss: str) -> Tensor:
    """Return the derivative, without l2's factor 2, which is in the scale: float16 may hold d but not 2 d."""
    if loss == "l1":
        return d.sign()
    return d.clamp(-1, 1) if loss == "smooth_l1" else d
