"""The settings of `training.finetune`; a dataclass that is its command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.augment import AugmentConfig
from training.methods import MethodConfig
from training.settings import LoopConfig


@dataclass(frozen=True)
class Config(LoopConfig, AugmentConfig, MethodConfig):
    """Fine-tune a classifier on a folder of images or shards."""

    preset: Literal["folder", "digits", "cpu", "replknet_31b", "replknet_31b_384"] = "folder"
    """Where the defaults come from."""
    output: Path = Path("runs/finetune")
    """Folder of the checkpoint; the run in progress is in its last/."""
    data: Path = Path("data/images")
    """Folder with train/LABEL/FILE and val/LABEL/FILE, or train/*.tar and val/*.tar."""
    arch: str = ""
    """Name in models.ARCHITECTURES, or any of timm's as timm/NAME; empty: that of the checkpoint folder in --weights,
    else replknet_small."""
    weights: Path | None = None
    """Checkpoint folder, .safetensors or .pth to start from; its head is trained on if the labels are the same, or with
    --keep-head."""
    image_size: int = 0
    """Pixels. 0: the checkpoint's or the architecture's; so are crop_pct, crop_mode, mean and std when left out."""
    crop_pct: float = 0.0
    crop_mode: Literal["center", "squash", "border"] | None = None
    """Of the evaluation and of serving, in timm's words: the centre; no aspect kept; all of the image, in a border."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    drop_path: float = 0.1
    label_smoothing: float | None = None  # type: ignore[assignment]  # AugmentConfig's; methods.label_smoothing has it
    """None: 0.1, or 0 for ldam, focal and paco, which have none."""
