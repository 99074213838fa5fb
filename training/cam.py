"""Maps [B,h,w] of where a classifier looks, not scaled: CAM, Grad-CAM, HiResCAM, LayerCAM."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import RepLKNet, class_maps
from models.class_map import channels_first
from models.modes import evaluating
from models.wrappers import bare_model
from training.settings import SettingsError

Method = Literal["cam", "gradcam", "hirescam", "layercam"]
AT_ONCE = 16  # images of a pass: RepLKNet-31B at 224 px keeps half a gigabyte of activations for each
ALWAYS_CHANNELS_FIRST = (nn.Conv2d, nn.BatchNorm2d)  # also in networks that compute in [B,h,w,C]


@torch.no_grad()
def cam(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return the exact evidence [B,h,w] for class targets[b]: its mean over the positions is the logit (Zhou et al.,
    CVPR 2016).

    Raises `ValueError` for a network with more than a mean and a linear layer after its features.
    """
    with evaluating(model):
        maps = class_maps(model, model.forward_features(images))  # type: ignore[operator] # [B,classes,h,w]
    return maps[torch.arange(len(targets)), targets]


def gradient_cam(model: nn.Module, images: Tensor, targets: Tensor, layer: str, method: Method) -> Tensor:
    """Return maps [B,h,w] from the activation A [B,C,h,w] of `layer` and the gradient G of the target's logit with
    respect to A.

    gradcam: relu(sum_c mean(G_c) A_c) (Selvaraju et al., ICCV 2017). hirescam: relu(sum_c G_c A_c) (Draelos & Carin,
    2020); before pooling and a linear layer it is CAM divided by h*w, without the bias, and so is Grad-CAM. layercam:
    sum_c relu(G_c) A_c, rectified (Jiang et al., TIP 2021). Raises `SettingsError` for a layer without such maps and
    for an unknown method.
    """
    module = _module(model, layer)
    with evaluating(model), _capture(module) as kept, torch.enable_grad():
        logits = model(images.detach().requires_grad_(True))
        if len(kept) != 1:
            runs = f"runs {len(kept)} times in a pass" if kept else "is a list or is not run as a whole"
            raise SettingsError(f"layer {layer!r} {runs}: name one that runs once, such as {last_layer(model)}")
        (activation,) = kept
        score = logits.gather(1, targets[:, None]).sum()
        (gradient,) = torch.autograd.grad(score, activation)
    if activation.dim() != 4:
        raise SettingsError(f"layer {layer!r} gives {list(activation.shape)}: maps [B,C,h,w] are needed")
    activation = activation.detach()
    if not isinstance(module, ALWAYS_CHANNELS_FIRST):
        activation, gradient = channels_first(model, activation), channels_first(model, gradient)
    if method == "gradcam":
        products = gradient.mean((2, 3), keepdim=True) * activation
    elif method == "hirescam":
        products = gradient * activation
    elif method == "layercam":
        products = gradient.relu() * activation
    else:
        raise SettingsError(f"method {method!r}: choose cam, gradcam, hirescam or layercam")
    return products.sum(1).relu()


def _module(model: nn.Module, layer: str) -> nn.Module:
    modules = dict(model.named_modules())
    if not layer or layer not in modules:
        lists = [name for name, module in model.named_children() if isinstance(module, nn.ModuleList)]
        near = [f"{name}.0" if name in lists else name for name, _ in model.named_children()]
        raise SettingsError(f"layer {layer!r} is not a module of the model: name one such as {', '.join(near)}")
    return modules[layer]


@contextmanager
def _capture(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the outputs of `module` in the forward passes inside the block."""
    kept: list[Tensor] = []
    hook = module.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    try:
        yield kept
    finally:
        hook.remove()


def last_layer(model: nn.Module) -> str:
    """The name of the layer that gives the last map: RepLKNet's final norm, the last stage of a timm model."""
    stages: Any = getattr(model, "feature_info", None)
    return "norm" if isinstance(model, RepLKNet) or not stages else stages[-1]["module"]


def explain(model: nn.Module, images: Tensor, targets: Tensor, method: Method, layer: str = "") -> Tensor:
    """Return maps [B,H,W] in 0..1, of the images' size: evidence for the class is bright. `layer` empty: the last one.

    Raises `SettingsError` for a layer with a single position, whose map shows nothing.
    """
    model = bare_model(model)
    parts = zip(images.split(AT_ONCE), targets.split(AT_ONCE), strict=True)
    if method == "cam":
        raw = torch.cat([cam(model, *part) for part in parts])
    else:
        layer = layer or last_layer(model)
        raw = torch.cat([gradient_cam(model, *part, layer, method) for part in parts])
    if raw.shape[1:].numel() == 1:
        raise SettingsError(
            f"at {images.shape[-1]} px the map of {method} is 1 x 1: take a gradient method on an earlier layer, such "
            "as --method layercam --layer stages.0"
        )
    return upscale(raw, images.shape[-2:])


def upscale(raw: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Upsample [B,h,w] -> [B,H,W], bilinear, and stretch each map to 0..1 (a constant one becomes 0)."""
    maps = F.interpolate(raw[:, None].float(), tuple(size), mode="bilinear", align_corners=False)[:, 0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-12)
