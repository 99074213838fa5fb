"""Checks of the masked-patch loss's arguments."""

import torch
from torch import Tensor

from kernels.arguments import differ, holds

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LOSSES = ("l1", "smooth_l1", "l2")
TARGET_NORMS = ("none", "window", "patch")


def check_arguments(prediction: Tensor, image: Tensor, mask: Tensor, loss: str, target_norm: str, window: int) -> None:
    """Raise `ValueError` for arguments that the operation is not defined on."""
    layouts = {"prediction": "[B,C*s*s,h,w]", "image": "[B,C,H,W]", "mask": "[B,h',w']"}
    for (name, layout), tensor in zip(layouts.items(), (prediction, image, mask), strict=True):
        if tensor.dim() != layout.count(",") + 1:
            raise ValueError(f"{name} has shape {list(tensor.shape)}: {layout} is expected")
        if tensor.device != prediction.device:
            raise ValueError(f"{name} is on {tensor.device}, prediction on {prediction.device}")
        if name != "mask" and tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}: float32, float16, bfloat16 or float64 is expected")
    batch, channels, height, width = image.shape
    if any(holds(size == 0, unknown=False) for tensor in (image, prediction, mask) for size in tensor.shape):
        shapes = ", ".join(str(list(t.shape)) for t in (prediction, image, mask))
        raise ValueError(f"prediction, image, mask have shapes {shapes}: none may be empty")
    stride = height // prediction.shape[2]
    expected = [batch, channels * stride**2, height // max(stride, 1), width // max(stride, 1)]
    if stride == 0 or differ(prediction.shape, expected) or height % stride or width % stride:
        raise ValueError(
            f"prediction has shape {list(prediction.shape)}, image {list(image.shape)}: [B,C*s*s,H/s,W/s] is expected"
        )
    patch = height // mask.shape[1]
    if patch == 0 or differ(mask.shape, (batch, height // patch, width // patch)) or height % patch or width % patch:
        raise ValueError(
            f"mask has shape {list(mask.shape)}, image {list(image.shape)}: [{batch},H/p,W/p] is expected for square "
            "patches of p pixels"
        )
    if patch % stride and stride % patch:
        raise ValueError(
            f"a mask patch is {patch} pixels, the prediction's stride {stride}: one must be a multiple of the other"
        )
    if loss not in LOSSES:
        raise ValueError(f"loss {loss!r}: choose one of {', '.join(LOSSES)}")
    if target_norm not in TARGET_NORMS:
        raise ValueError(f"target_norm {target_norm!r}: choose one of {', '.join(TARGET_NORMS)}")
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window {window}: an odd number of pixels, at least 3, is expected")
