"""The architectures by name."""

from dataclasses import dataclass
from typing import Any

from models.replknet import RepLKNet

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Architecture:
    """Sizes of one RepLKNet and how its images are prepared (sizes in pixels, mean and std on the 0..1 scale)."""

    layers: tuple[int, ...]
    channels: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    small_kernel: int | None = 5
    dw_ratio: float = 1.0
    image_size: int = 224
    crop_pct: float = 0.875
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    source: str = "published"


ARCHITECTURES: dict[str, Architecture] = {
    "replknet_31b": Architecture((2, 2, 18, 2), (128, 256, 512, 1024), (31, 29, 27, 13)),
    "replknet_31l": Architecture((2, 2, 18, 2), (192, 384, 768, 1536), (31, 29, 27, 13), image_size=384, crop_pct=1.0),
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


def create_model(arch: str, num_classes: int = 1000, **kwargs: Any) -> RepLKNet:
    """A RepLKNet in training form with random weights: images [B,3,H,W] -> logits [B,num_classes].

    `kwargs` are RepLKNet's own (`drop_path_rate`, ...) and override the architecture's. Raises `ValueError` for a name
    that is not in `ARCHITECTURES`.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch {arch!r} is unknown: choose one of {', '.join(ARCHITECTURES)}")
    names = ("layers", "channels", "kernel_sizes", "small_kernel", "dw_ratio")
    sizes = {name: getattr(ARCHITECTURES[arch], name) for name in names}
    return RepLKNet(**{**sizes, "num_classes": num_classes, **kwargs})
