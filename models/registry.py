"""The architectures by name: our own, and timm's as timm/NAME."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from models.errors import SettingsError
from models.replknet import RepLKNet
from models.timm_models import create_timm_model, is_timm, near_names, near_timm_names, timm_config

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """How a network's images are prepared: sizes in pixels, mean and std on the 0..1 scale."""

    image_size: int = 224
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    """timm's: center, squash (no aspect kept), border (the longer side fits, the rest is filled with the mean)."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD


@dataclass(frozen=True)
class Architecture(Inputs):
    """Sizes of one RepLKNet and how its images are prepared."""

    layers: tuple[int, ...]
    channels: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    small_kernel: int | None = 5
    dw_ratio: float = 1.0
    source: str = "published"


ARCHITECTURES: dict[str, Architecture] = {
    "replknet_31b": Architecture((2, 2, 18, 2), (128, 256, 512, 1024), (31, 29, 27, 13)),
    "replknet_31l": Architecture(
        (2, 2, 18, 2),
        (192, 384, 768, 1536),
        (31, 29, 27, 13),
        image_size=384,
        crop_pct=1.0,
        crop_mode="squash",  # as its authors evaluate from 384 px on
    ),
    "replknet_xl": Architecture(
        (2, 2, 18, 2),
        (256, 512, 1024, 2048),
        (27, 27, 27, 13),
        small_kernel=None,
        dw_ratio=1.5,
        image_size=320,
        mean=HALF,
        std=HALF,
    ),
    # Not of the paper: 25 M parameters, the paper's kernel sizes.
    "replknet_small": Architecture((2, 2, 6, 2), (96, 192, 384, 768), (31, 29, 27, 13), source="Widefield's own"),
    # Not of the paper: 1.4 M parameters for the demo. Beyond 13 the paper's table 5 finds next to no gain in
    # classification; 7 covers the last map at 224 px.
    "replknet_nano": Architecture((1, 1, 2, 1), (32, 64, 128, 256), (13, 13, 13, 7), source="Widefield's own"),
}


def check_arch(arch: str) -> None:
    """Raise `SettingsError`, with similar names, for a name that is neither in `ARCHITECTURES` nor timm's."""
    if not isinstance(arch, str):
        raise SettingsError(f"arch {arch!r} is not a name: choose one of {', '.join(ARCHITECTURES)}, or timm/NAME")
    if is_timm(arch):
        timm_config(arch)
    elif arch not in ARCHITECTURES:
        exact = [arch.lower()] if arch.lower() in ARCHITECTURES else []
        if ours := exact or near_names(arch, list(ARCHITECTURES), most=2, least=0.9):
            raise SettingsError(f"arch {arch!r} is unknown: did you mean {' or '.join(ours)}?")
        near = near_timm_names(arch)
        raise SettingsError(
            f"arch {arch!r} is unknown: choose one of {', '.join(ARCHITECTURES)}, or timm/NAME"
            + (f", such as {', '.join(near)}" if near else "")
        )


def input_defaults(arch: str) -> Inputs:
    """How the images of `arch` were prepared for its published weights. Raises `SettingsError` as `check_arch`."""
    check_arch(arch)
    if not is_timm(arch):
        return ARCHITECTURES[arch]
    config = timm_config(arch)
    _, height, width = config.get("input_size", (3, 224, 224))
    if height != width:
        raise SettingsError(
            f"arch {arch!r} takes images of {width} x {height} pixels: only square images are supported"
        )
    names = ("crop_pct", "interpolation", "crop_mode", "mean", "std")
    values = {name: config[name] for name in names if config.get(name)}
    if "crop_pct" in values:
        values["crop_pct"] = min(1.0, values["crop_pct"])  # above 1 timm pads the resized image: VOLO's largest
    return Inputs(image_size=width, **values)


def create_model(arch: str, num_classes: int = 1000, image_size: int = 0, **kwargs: Any) -> nn.Module:
    """A model in training form with random weights: normalised images [B,3,H,W] -> logits [B,num_classes].

    `num_classes` 0: no head, the output is the pooled features. `kwargs` are the architecture's own (`drop_path_rate`,
    ...), and `in_channels` for images of other than 3 (timm's name for it, `in_chans`, is accepted too). `image_size`
    matters only to timm models that are made for one size; 0: the architecture's (timm's own `img_size` is refused).
    Nothing is downloaded: `pretrained` is False. A RepLKNet has neither timm's `features_only` (`forward_features`
    gives the last map) nor its `global_pool` (it is the mean).

    Raises `ValueError` as `check_arch`, and for impossible sizes.
    """
    check_arch(arch)
    if kwargs.pop("pretrained", False):
        raise ValueError(f"{arch}: pretrained=True, but nothing is downloaded: use load_weights(model, FILE)")
    if "img_size" in kwargs:
        raise ValueError(f"img_size={kwargs['img_size']}: name it image_size, one number of pixels")
    word, other = ("in_chans", "in_channels") if is_timm(arch) else ("in_channels", "in_chans")
    if other in kwargs:
        if word in kwargs:
            raise ValueError(f"in_channels and in_chans mean the same ({kwargs}): name one of them")
        kwargs[word] = kwargs.pop(other)
    if is_timm(arch):
        return create_timm_model(arch, num_classes, image_size or input_defaults(arch).image_size, **kwargs)
    return create_replknet(arch, num_classes, **kwargs)


def create_skeleton(arch: str, num_classes: int = 1000, image_size: int = 0) -> nn.Module:
    """`create_model` for the names and shapes of its weights: on the meta device, without memory, where that can be.

    A network whose constructor reads values, such as `.item()` of a drop path's rates, is made on the CPU; the state of
    the random numbers stays as it was.
    """
    try:
        with torch.device("meta"):
            return create_model(arch, num_classes, image_size)
    except Exception:  # which one depends on how the value is read
        with torch.random.fork_rng(devices=[]):
            return create_model(arch, num_classes, image_size)


def create_replknet(arch: str, num_classes: int = 1000, **kwargs: Any) -> RepLKNet:
    """The RepLKNet called `arch`, for what only a RepLKNet can do. Raises `ValueError` for other names."""
    if arch not in ARCHITECTURES:
        raise SettingsError(f"arch {arch!r} is not a RepLKNet: choose one of {', '.join(ARCHITECTURES)}")
    names = ("layers", "channels", "kernel_sizes", "small_kernel", "dw_ratio")
    sizes = {name: getattr(ARCHITECTURES[arch], name) for name in names}
    return RepLKNet(**{**sizes, "num_classes": num_classes, **kwargs})
