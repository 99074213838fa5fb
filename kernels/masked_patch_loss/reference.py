"""The specification of the operation in plain PyTorch; accurate in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = {"l1": F.l1_loss, "smooth_l1": F.smooth_l1_loss, "l2": F.mse_loss}


def masked_patch_loss_reference(
    prediction: Tensor, image: Tensor, mask: Tensor, loss: str = "l1", target_norm: str = "none", window: int = 47
) -> Tensor:
    """prediction [B,C*s*s,h,w], image [B,C,h*s,w*s], mask [B,h',w'] (1 = masked) -> [], differentiable."""
    channels, height = image.shape[1:3]
    size = height // mask.shape[1]
    target = image
    if target_norm == "window":  # unbiased variance over a window that is cut off at the border
        mean = F.avg_pool2d(image, window, 1, window // 2, count_include_pad=False)
        square = F.avg_pool2d(image**2, window, 1, window // 2, count_include_pad=False)
        count = F.avg_pool2d(torch.ones_like(image), window, 1, window // 2, count_include_pad=True) * window**2
        var = ((square - mean**2) * count / (count - 1).clamp(min=1)).clamp(min=0)
        target = (image - mean) / (var + 1e-6).sqrt()
    elif target_norm == "patch":  # over the pixels and channels of each patch
        patches = F.unfold(image, size, stride=size)  # [B,C*size*size,L]
        var, mean = torch.var_mean(patches, dim=1, keepdim=True, correction=min(1, patches.shape[1] - 1))
        target = F.fold((patches - mean) / (var + 1e-6).sqrt(), image.shape[2:], size, stride=size)
    pixels = mask.repeat_interleave(size, 1).repeat_interleave(size, 2).bool()  # [B,H,W]
    values = LOSSES[loss](F.pixel_shuffle(prediction, height // prediction.shape[2]), target, reduction="none")
    return torch.where(pixels[:, None], values, 0).sum() / (pixels.sum().to(image.dtype) + 1e-5) / channels
