"""From settings to a learner: the loss, the sampler's weights and the method around the model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from models import ModelConfig
from training.adversarial import AdvProp, FastAT
from training.augment import AugmentConfig, MixBatch
from training.learners import CosineSupervised, CrossEntropy, HeadOnly, Supervised
from training.long_tail import ClassWeights, class_weights
from training.long_tail_losses import LDAM, Focal, LogitAdjusted
from training.loop import Learner
from training.paco import PaCo
from training.settings import SettingsError

HARD_TARGETS = ("ldam", "focal", "paco", "gpaco")
WITHOUT_SMOOTHING = ("ldam", "focal", "paco")
LABEL_SMOOTHING = 0.1
EPSILONS = {"fast_at": 8.0, "advprop": 4.0}  # the papers', in 255ths


@dataclass(frozen=True)
class MethodConfig:
    """What is trained besides a plain classifier."""

    loss: Literal["cross_entropy", "balanced_softmax", "logit_adjustment", "ldam", "focal", "paco", "gpaco"] = (
        "cross_entropy"
    )
    logit_tau: float = 1.0
    """Of logit_adjustment; 1 is balanced_softmax."""
    focal_gamma: float = 2.0
    drw_start: float = 0.8
    """Share of the run after which ldam weighs classes; 1: never."""
    class_weights: ClassWeights = "none"
    """Of cross_entropy and focal, mean 1: 1/n, 1/sqrt(n), or by the effective number of samples."""
    sampler: Literal["instance", "class_balanced", "square_root", "progressive"] = "instance"
    imbalance: float = 0.0
    """Train on an exponential long tail of this ratio, cut from the data; 0: on all of it."""
    head_only: bool = False
    """Train a new head on frozen features of --weights (cRT; with --sampler class_balanced)."""
    keep_head: bool = False
    """Keep the head of --weights whatever its labels are, or where a file has none: class i becomes the data's i-th
    label."""
    paco_alpha: float = 0.05
    paco_temperature: float = 0.2
    paco_queue: int = 8192
    paco_dim: int = 128
    paco_momentum: float = 0.999
    adversarial: Literal["none", "fast_at", "advprop"] = "none"
    """fast_at: a defence; advprop: for clean accuracy, no defence."""
    epsilon: float | None = None
    """Size of the attack, in 255ths; None: the paper's, 8 for fast_at, 4 for advprop."""
    overfitting_drop: float = 0.2
    """fast_at stops when its accuracy under PGD-5 falls by more than this."""


USED_BY = {  # setting -> the choice that it belongs to, and those of its values that look at it
    "logit_tau": ("loss", ("logit_adjustment",)),
    "focal_gamma": ("loss", ("focal",)),
    "drw_start": ("loss", ("ldam",)),
    **dict.fromkeys(("paco_alpha", "paco_temperature", "paco_queue", "paco_dim"), ("loss", ("paco", "gpaco"))),
    "paco_momentum": ("loss", ("paco",)),
    "epsilon": ("adversarial", ("fast_at", "advprop")),
    "overfitting_drop": ("adversarial", ("fast_at",)),
}


def check_method(method: MethodConfig, augment: AugmentConfig, has_weights: bool) -> None:
    """Raises `SettingsError` for settings that exclude each other, and for one that nothing would look at."""
    for name, (choice, users) in USED_BY.items():
        value = getattr(method, name)
        if value != getattr(MethodConfig, name) and getattr(method, choice) not in users:
            option, needed = name.replace("_", "-"), f"--{choice} {' or '.join(users)}"
            raise SettingsError(f"--{option} {value} does nothing without {needed}: choose that, or leave it out")
    if augment.augmentation != "crop" and augment.min_crop_area != (usual := AugmentConfig.min_crop_area):
        what = f"--min-crop-area {augment.min_crop_area} does nothing with --augmentation {augment.augmentation}"
        raise SettingsError(f"{what}: take crop, or leave it at {usual}")
    mixing = augment.mixup > 0 or augment.cutmix > 0
    special = method.loss in ("ldam", "paco", "gpaco")
    if mixing and (method.loss in HARD_TARGETS or method.head_only or method.adversarial != "none"):
        what = method.loss if method.loss in HARD_TARGETS else "--head-only" if method.head_only else method.adversarial
        raise SettingsError(f"--mixup and --cutmix make soft targets, {what} needs hard ones: set both to 0")
    if method.adversarial != "none" and (special or method.head_only):
        raise SettingsError(f"--adversarial {method.adversarial} goes with a loss on logits, not with this method")
    if method.adversarial != "none" and augment.random_erasing:
        raise SettingsError("--random-erasing leaves [0,1], where attacks live: set it to 0")
    if method.head_only and (special or not has_weights):
        raise SettingsError("--head-only needs the features of --weights, and a loss on logits")
    if method.keep_head and (method.head_only or not has_weights):
        raise SettingsError("--keep-head needs --weights, and no --head-only, whose head is new: or --no-keep-head")
    if method.loss in WITHOUT_SMOOTHING and augment.label_smoothing:
        raise SettingsError(f"--label-smoothing {augment.label_smoothing}: {method.loss} has none; leave it out")
    if method.class_weights != "none" and method.loss not in ("cross_entropy", "focal"):
        raise SettingsError(f"--class-weights {method.class_weights}: {method.loss} has its own; use none")


def attack_epsilon(method: MethodConfig) -> float:
    """The size that is asked for, or the paper's, in 255ths; 0 without an attack."""
    return EPSILONS.get(method.adversarial, 0.0) if method.epsilon is None else method.epsilon


def label_smoothing(method: MethodConfig, asked: float | None) -> float:
    """What is asked for, or what goes with the loss, 0..1."""
    return (0.0 if method.loss in WITHOUT_SMOOTHING else LABEL_SMOOTHING) if asked is None else asked


def make_criterion(method: MethodConfig, augment: AugmentConfig, counts: Sequence[int]) -> nn.Module:
    """The loss on logits. `counts`: training images of each class."""
    if method.loss in ("balanced_softmax", "logit_adjustment"):
        tau = method.logit_tau if method.loss == "logit_adjustment" else 1.0
        return LogitAdjusted(counts, tau, augment.label_smoothing)
    if method.loss == "ldam":
        return LDAM(counts, drw_start=method.drw_start)
    weights = class_weights(counts, method.class_weights)
    if method.loss == "focal":
        return Focal(method.focal_gamma, weights)
    return CrossEntropy(augment.label_smoothing, weights)


def make_learner(
    model: nn.Module,
    method: MethodConfig,
    augment: AugmentConfig,
    config: ModelConfig,
    counts: Sequence[int],
    batch_size: int,
) -> Learner:
    """The learner that the settings ask for, with its own parameters beside the model's. Raises `SettingsError`."""
    augment = replace(augment, label_smoothing=label_smoothing(method, augment.label_smoothing))
    if method.loss in ("paco", "gpaco"):
        return PaCo(
            model,
            counts,
            generalized=method.loss == "gpaco",
            alpha=method.paco_alpha,
            temperature=method.paco_temperature,
            queue_size=method.paco_queue,
            dim=method.paco_dim,
            momentum=method.paco_momentum,
            smoothing=augment.label_smoothing if method.loss == "gpaco" else 0.0,
        )
    criterion = make_criterion(method, augment, counts)
    if method.adversarial != "none":
        learner = FastAT if method.adversarial == "fast_at" else AdvProp
        return learner(model, criterion, config.mean, config.std, attack_epsilon(method) / 255)
    if method.loss == "ldam":
        return CosineSupervised(model, criterion)
    if method.head_only:
        return HeadOnly(model, criterion)
    if augment.mixup <= 0 and augment.cutmix <= 0:
        return Supervised(model, criterion)
    if (images := sum(counts)) < batch_size and images % 2:  # they are one batch
        raise SettingsError(
            f"--batch-size {batch_size} with --mixup or --cutmix on {images} images: {images - 1} or a lower even one"
        )
    return Supervised(model, criterion, MixBatch(augment, config.num_classes, batch_size))
