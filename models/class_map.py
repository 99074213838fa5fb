"""The exact class activation map, in the graph, of a network that ends in global average pooling and a linear layer."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.classifier import linear_head
from models.errors import SettingsError


def channels_first(model: nn.Module, features: Tensor) -> Tensor:
    """Features as [B,C,h,w]: some of timm's networks have [B,h,w,C] inside."""
    return features.permute(0, 3, 1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else features


def class_maps(model: nn.Module, features: Tensor) -> Tensor:
    """Evidence [B,classes,h,w] of features [B,C,h,w] = `model.forward_features(images)`.

    CAM (Zhou et al., CVPR 2016) with the bias: the mean over the positions is the logit, exactly, in the training and
    in the deploy form, because both the mean and the head are linear. Raises `SettingsError` for a network with
    anything else between its features and its logits. NaN and infinity are passed on.
    """
    network: Any = model
    head, maps = linear_head(model), channels_first(model, features)
    if maps.dim() != 4 or maps.shape[1] != head.in_features:
        raise SettingsError(_no_map(model))
    evidence = F.conv2d(maps, head.weight[:, :, None, None], head.bias)
    logits = network.forward_head(features).detach()
    finite = logits.isfinite()
    mean, logits = evidence.detach().mean((2, 3))[finite], logits[finite]
    largest = float(logits.abs().max()) if len(logits) else 0.0
    if not torch.allclose(mean, logits, rtol=1e-2, atol=1e-2 * largest):
        raise SettingsError(_no_map(model))
    return evidence


def _no_map(model: nn.Module) -> str:
    return (
        f"{type(model).__name__} has more than a mean and a linear layer after its features, so no class map is exact: "
        "explain it with gradcam or layercam"
    )


class WithClassMap(nn.Module):
    """Images [B,3,H,W] -> logits [B,classes] and the evidence map of the answer [B,h,w]. No gradients: exportable.

    For networks that `class_maps` accepts. Rows are selected by index_select: indexing would trace the device.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        network: Any = self.model
        features = network.forward_features(images)  # [B,C,h,w]
        logits = network.forward_head(features)  # [B,classes]
        answer, head = logits.argmax(1), linear_head(self.model)  # [B]
        weight, bias = (parameter.index_select(0, answer) for parameter in (head.weight, head.bias))  # [B,C], [B]
        class_map = torch.einsum("bchw,bc->bhw", channels_first(self.model, features), weight) + bias[:, None, None]
        return logits, class_map
