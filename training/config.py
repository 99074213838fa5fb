"""The settings of `training.finetune`; a dataclass that is its command line."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.augment import AugmentConfig
from training.long_tail import ClassWeights
from training.samplers import Sampling
from training.settings import LoopConfig
from training.splits import SplitConfig


@dataclass(frozen=True)
class MethodConfig:
    """Settings of the training methods besides plain classification."""

    loss: Literal["cross_entropy", "balanced_softmax", "logit_adjustment", "ldam", "focal", "paco", "gpaco"] = (
        "cross_entropy"
    )
    label_smoothing: float | None = None
    """None: 0.1, or 0 for ldam, focal and paco, which have none."""
    logit_tau: float = 1.0
    """The strength of logit_adjustment; 1 is balanced_softmax."""
    focal_gamma: float = 2.0
    drw_start: float = 0.8
    """Share of the run after which ldam weighs classes; 1: never."""
    class_weights: ClassWeights = "none"
    """Class weights of cross_entropy and focal, mean 1: 1/n, 1/sqrt(n), or by the effective number of samples."""
    sampler: Sampling = "instance"
    imbalance: float = 0.0
    """Train on an exponential long tail of this ratio, cut from the data (the largest class keeps as many as the
    smallest has); 0: on all of it."""
    head_only: bool = False
    """Train a new head on frozen features of --weights (cRT; with --sampler class_balanced)."""
    keep_head: bool = False
    """Keep the head of --weights whatever its labels are, and that of a file without labels: class i becomes the data's
    i-th label."""
    paco_alpha: float = 0.05
    paco_temperature: float = 0.2
    paco_queue: int = 8192
    paco_dim: int = 128
    paco_momentum: float = 0.999
    adversarial: Literal["none", "fast_at", "advprop"] = "none"
    """fast_at: a defence against attacks; advprop: for clean accuracy, no defence."""
    epsilon: float | None = None
    """Size of the attack, in 255ths; None: the paper's, 8 for fast_at, 4 for advprop."""
    overfitting_drop: float = 0.2
    """fast_at stops when its accuracy under PGD-5 falls by more than this."""


@dataclass(frozen=True)
class Config(LoopConfig, AugmentConfig, MethodConfig, SplitConfig):
    """Fine-tune a classifier on a folder of images or shards."""

    preset: Literal["folder", "digits", "cpu", "replknet_31b", "replknet_31b_384"] = "folder"
    """Where the defaults come from; cpu: a small model, without a GPU; replknet_31b...: the published recipes."""
    output: Path = Path("runs/finetune")
    """Folder of the checkpoint; the run in progress is in its last/."""
    data: Path = Path("data/images")
    """Folder with train/ and val/, each with LABEL/FILE or with *.tar; with --val-share: with LABEL/FILE itself."""
    arch: str = ""
    """Name in models.ARCHITECTURES, or any of timm's as timm/NAME; empty: that of the checkpoint in --weights, else
    replknet_small."""
    weights: Path | None = None
    """Checkpoint folder or the file in it, or another .safetensors or .pth to start from; its head is trained on if the
    labels are the same, or with --keep-head."""
    image_size: int = 0
    """Pixels. 0: the checkpoint's or the architecture's; so are crop_pct, crop_mode, mean and std when left out."""
    crop_pct: float = 0.0
    crop_mode: Literal["center", "squash", "border"] | None = None
    """Crop in evaluation and serving. center; squash: the aspect is not kept; border: all of the image, in a border."""
    mean: tuple[float, ...] = ()
    """Mean of red, green and blue on the 0..1 scale: what is on 0..255 elsewhere is divided by 255."""
    std: tuple[float, ...] = ()
    """Standard deviation of each, likewise."""
    drop_path: float = 0.1
