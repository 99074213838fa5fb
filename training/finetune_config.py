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
    """Training loss; all but cross_entropy are for classes with unequal numbers of images"""
    label_smoothing: float | None = None
    """Label smoothing, 0 to 1; None: 0.1, or 0 for ldam, focal and paco, which allow none"""
    logit_tau: float = 1.0
    """Factor on the class prior in --loss logit_adjustment; 1: the same as balanced_softmax"""
    focal_gamma: float = 2.0
    """Exponent gamma of --loss focal, at least 0; 0: cross entropy"""
    drw_start: float = 0.8
    """Share of the run after which --loss ldam weights the classes (deferred re-weighting), 0 to 1; 1: never"""
    class_weights: ClassWeights = "none"
    """Weight of a class of n images in --loss cross_entropy and focal, scaled to mean 1.
    inverse: 1/n; inverse_sqrt: 1/sqrt(n); effective: the inverse of the effective number of samples."""
    sampler: Sampling = "instance"
    """How often images are drawn.
    instance: each once an epoch; class_balanced: all classes equally often;
    square_root: classes by the root of their size;
    progressive: from instance to class_balanced over the run."""
    imbalance: float = 0.0
    """Train on an exponential long tail that is cut from the data; 0: train on all images.
    Its largest class has this many times the images of its smallest."""
    head_only: bool = False
    """Train only a new head, on frozen features of --weights (cRT if with --sampler class_balanced)"""
    keep_head: bool = False
    """Keep the head of --weights even if its labels differ or are unknown: its class i becomes the data's i-th label"""
    paco_alpha: float = 0.05
    """Weight of a contrast of the same class (alpha) in --loss paco and gpaco"""
    paco_temperature: float = 0.2
    """Temperature of the similarities in --loss paco and gpaco, above 0"""
    paco_queue: int = 8192
    """Number of earlier features to contrast with in --loss paco and gpaco"""
    paco_dim: int = 128
    """Dimension of the projected features in --loss paco and gpaco"""
    paco_momentum: float = 0.999
    """Momentum of the key encoder in --loss paco, 0 to 1"""
    adversarial: Literal["none", "fast_at", "advprop"] = "none"
    """Adversarial training. fast_at: for robust accuracy under attack; advprop: for clean accuracy, not robust"""
    epsilon: float | None = None
    """Radius of the attack in training, in 255ths of a pixel's range; None: 8 for fast_at, 4 for advprop"""
    overfitting_drop: float = 0.2
    """Stop fast_at if its accuracy under PGD-5 falls by more than this below the best so far, 0 to 1"""


@dataclass(frozen=True)
class Config(LoopConfig, AugmentConfig, MethodConfig, SplitConfig):
    """Fine-tune a classifier on a folder of images or shards."""

    preset: Literal["folder", "digits", "cpu", "replknet_31b", "replknet_31b_384"] = "folder"
    """Set of defaults, which other options override.
    cpu: a small model, without a GPU; replknet_31b...: the published recipes."""
    output: Path = Path("runs/finetune")
    """Folder for the checkpoint; its last/ holds the state of the run in progress"""
    data: Path = Path("data/images")
    """Folder with train/ and val/, each of LABEL/FILE or *.tar shards; with --val-share a folder of LABEL/FILE"""
    arch: str = ""
    """Architecture: replknet_31b, _31l, _xl, _small, _nano, or timm/NAME for one of timm's.
    Empty: that of the checkpoint in --weights, else replknet_small."""
    weights: Path | None = None
    """Weights to start from.
    A checkpoint folder, the file in it, or a published file with its --arch.
    The same as --checkpoint of training.evaluate and --weights of build_models.py.
    Their head is kept only if its labels are those of the data, or with --keep-head.
    Published weights take a lower --lr than random ones: 5e-5 for 64 images a step."""
    image_size: int = 0
    """Side of the input, pixels; 0: that of the checkpoint in --weights, else of the architecture.
    The defaults of --crop-pct, --crop-mode, --mean and --std come from there too."""
    crop_pct: float = 0.0
    """Share of the resized image's shorter side that the crop keeps, 0.1 to 1; 0: as for --image-size"""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """How images become square in evaluation and serving; None: as for --image-size.
    center: keep the centre; squash: scale each side on its own; border: keep all and fill with the mean."""
    mean: tuple[float, ...] = ()
    """Mean of red, green and blue on the 0..1 scale (divide values on 0..255 by 255); empty: as for --image-size"""
    std: tuple[float, ...] = ()
    """Standard deviation of red, green and blue on the 0..1 scale; empty: as for --image-size"""
    drop_path: float = 0.1
    """Probability of dropping the last block's branch (stochastic depth), from 0 at the first block; 0: off"""
