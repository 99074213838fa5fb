"""The settings of `training.pretrain`, a dataclass that is its command line, and its presets."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from models.masked import STRIDE
from training.settings import LoopConfig, SettingsError, check_loop, check_used
from training.splits import SplitConfig


@dataclass(frozen=True)
class Config(LoopConfig, SplitConfig):
    """Pre-train a RepLKNet on images without labels."""

    layer_decay: Annotated[float, tyro.conf.Fixed, tyro.conf.Suppress] = 1.0  # pre-training has one rate for all layers
    preset: Literal["simmim", "photos", "digits"] = "simmim"
    """Set of defaults, which other options override. photos and digits bring their own images and need no GPU."""
    output: Path = Path("runs/pretrain")
    """Folder for the checkpoint, to give to training.finetune --weights.
    Its last/ holds the state of the run in progress."""
    data: Path = Path("data/images")
    """Folder with train/ and val/, each of images at any depth or of *.tar shards; labels are ignored.
    With --val-share a folder of images at any depth."""
    arch: str = ""
    """Architecture: replknet_31b, _31l, _xl, _small or _nano.
    Empty: that of the checkpoint in --weights, else replknet_small."""
    weights: Path | None = None
    """Weights of the encoder to start from; their head is left out.
    A checkpoint folder, the file in it, or a published file with its --arch."""
    image_size: int = 192
    """Side of the network's input, pixels: a multiple of 32"""
    mean: tuple[float, ...] = ()
    """Mean of red, green and blue on the 0..1 scale (divide values on 0..255 by 255); empty: the architecture's"""
    std: tuple[float, ...] = ()
    """Standard deviation of red, green and blue on the 0..1 scale; empty: the architecture's"""
    mask_patch: int = 32
    """Side of a masked square, pixels: 4, 8, 16, 32 or a multiple of 32"""
    mask_ratio: float = 0.6
    """Share of the patches that are masked, rounded up to whole patches"""
    mask_mode: Literal["token", "sparse"] = "token"
    """token: replace masked positions by a learned vector (SimMIM).
    sparse: leave masked positions out of every layer and batch norm (SparK)."""
    loss: Literal["l1", "smooth_l1", "l2"] = "l1"
    """Distance between predicted and true pixels, on masked patches only"""
    target_norm: Literal["none", "window", "patch"] = "none"
    """How the pixels to predict are normalised: not at all, or by mean and standard deviation.
    window: those of the window around each pixel (SimMIM); patch: those of each patch (MAE)."""
    window: int = 47
    """Side of the window of --target-norm window, pixels: odd, at least 3"""
    min_crop_area: float = 0.67
    """Smallest random crop, as a share of the image's area, above 0 and at most 1"""
    flip: bool = True
    """Mirror half of the images"""
    drop_path: float = 0.0
    """Probability of dropping the last block's branch (stochastic depth), from 0 at the first block; 0: off"""
    pictures: int = 8
    """Number of held-out images in OUTPUT/reconstructions.png, drawn after every epoch; 0: none"""


# SimMIM's recipe of 100 epochs at 192 px (Xie et al., CVPR 2022): the rates are its 2e-4 and 1e-5 for 512 images.
_SIMMIM = Config(
    output=Path("runs/pretrain-simmim"),
    data=Path("data/imagenet"),
    arch="replknet_31b",
    epochs=100,
    batch_size=128,
    global_batch_size=2048,
    lr=8e-4,
    min_lr=4e-5,
    warmup_epochs=10.0,
    weight_decay=0.05,
    clip_grad=5.0,
    ema_decay=0.0,
    amp="bf16",
    workers=10,
)
PRESETS = {
    "simmim": _SIMMIM,
    # Tiles of real photographs that come with scikit-learn; a minute or two on two CPU cores.
    "photos": Config(
        preset="photos",
        output=Path("runs/pretrain-photos"),
        data=Path("data/photos"),
        arch="replknet_nano",
        image_size=96,
        mask_patch=16,
        epochs=60,
        batch_size=32,
        lr=2e-3,
        warmup_epochs=3.0,
        clip_grad=5.0,
        ema_decay=0.0,
    ),
    "digits": Config(
        preset="digits",
        output=Path("runs/pretrain-digits"),
        data=Path("data/digits"),
        arch="replknet_nano",
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        mask_patch=8,
        flip=False,  # a mirrored digit is no digit
        epochs=40,
        batch_size=64,
        lr=2e-3,
        clip_grad=5.0,
        ema_decay=0.0,
        threads=1,
    ),
}


def check(config: Config) -> None:
    """Raise `SettingsError` for settings that do not fit together; MaskGenerator and the operator check the rest."""
    check_loop(config, PRESETS[config.preset])
    if config.image_size < STRIDE or config.image_size % STRIDE:
        raise SettingsError(f"--image-size {config.image_size}: a multiple of {STRIDE} is needed")
    patch = config.mask_patch
    if patch < 4 or patch % 4 or (patch % STRIDE and STRIDE % patch):
        raise SettingsError(f"--mask-patch {patch}: 4, 8, 16, 32 or a multiple of {STRIDE} is needed")
    if config.window < 3 or config.window % 2 == 0:
        raise SettingsError(f"--window {config.window}: an odd number, at least 3, is needed")
    check_used(config, Config, {"window": ("target_norm", ("window",))})
    if config.layer_decay != 1.0:
        raise SettingsError(f"--layer-decay {config.layer_decay}: pre-training has one rate for all layers; use 1")
    if config.sync_bn and config.mask_mode == "sparse":
        raise SettingsError("--sync-bn with --mask-mode sparse: its batch norms count visible positions; leave it out")
