"""Make a learner, the loss and the method around the model, from the settings."""

from collections.abc import Sequence

from torch import nn

from models import ModelConfig
from training.adversarial import AdvProp, FastAT
from training.augment import MixBatch
from training.finetune_config import Config, MethodConfig
from training.learners import CosineSupervised, HeadOnly, Supervised
from training.long_tail import class_weights
from training.loop import Learner
from training.losses import LDAM, CrossEntropy, Focal, LogitAdjusted
from training.paco import PaCo
from training.presets import PRESETS
from training.settings import SettingsError, check_used

HARD_TARGETS = ("ldam", "focal", "paco", "gpaco")
WITHOUT_SMOOTHING = ("ldam", "focal", "paco")
LABEL_SMOOTHING = 0.1
EPSILONS = {"fast_at": 8.0, "advprop": 4.0}  # the papers', in 255ths
USED_BY = {  # see `check_used`
    "logit_tau": ("loss", ("logit_adjustment",)),
    "focal_gamma": ("loss", ("focal",)),
    "drw_start": ("loss", ("ldam",)),
    **dict.fromkeys(("paco_alpha", "paco_temperature", "paco_queue", "paco_dim"), ("loss", ("paco", "gpaco"))),
    "paco_momentum": ("loss", ("paco",)),
    "epsilon": ("adversarial", ("fast_at", "advprop")),
    "overfitting_drop": ("adversarial", ("fast_at",)),
    **dict.fromkeys(("min_crop_area", "flip"), ("augmentation", ("crop",))),
    "affine_fill": ("augmentation", ("affine",)),
}


def check_method(config: Config) -> None:
    """Raise `SettingsError` for settings that exclude each other, and for one without effect, except the preset's."""
    check_used(config, PRESETS[config.preset], USED_BY)
    mixing = config.mixup > 0 or config.cutmix > 0
    special = config.loss in ("ldam", "paco", "gpaco")
    if mixing and (config.loss in HARD_TARGETS or config.head_only or config.adversarial != "none"):
        what = config.loss if config.loss in HARD_TARGETS else "--head-only" if config.head_only else config.adversarial
        raise SettingsError(f"--mixup and --cutmix make soft targets, {what} needs hard ones: set both to 0")
    if config.adversarial != "none" and (special or config.head_only):
        other = "--head-only" if config.head_only else f"--loss {config.loss}"
        raise SettingsError(f"--adversarial {config.adversarial} does not go with {other}: leave one of them out")
    if config.adversarial != "none" and config.random_erasing:
        raise SettingsError(
            "--random-erasing makes pixels outside [0,1], which --adversarial cannot attack: set it to 0"
        )
    if config.head_only and (special or config.weights is None):
        raise SettingsError("--head-only needs the features of --weights, and another --loss than ldam, paco and gpaco")
    for name in ("drop_path", "layer_decay") if config.head_only else ():
        if (value := getattr(config, name)) != getattr(PRESETS[config.preset], name):
            option = f"--{name.replace('_', '-')} {value}"
            raise SettingsError(f"{option} does nothing with --head-only, whose features are frozen: leave it out")
    if config.keep_head and (config.head_only or config.weights is None):
        raise SettingsError(
            "--keep-head needs --weights, and --head-only trains a new head: leave it out (--no-keep-head)"
        )
    if config.loss in WITHOUT_SMOOTHING and config.label_smoothing:
        raise SettingsError(f"--label-smoothing {config.label_smoothing}: {config.loss} has none; leave it out")
    if config.class_weights != "none" and config.loss not in ("cross_entropy", "focal"):
        raise SettingsError(f"--class-weights {config.class_weights}: {config.loss} has its own; use none")


def attack_epsilon(config: MethodConfig) -> float:
    """The attack's size in 255ths: the one asked for or the paper's; 0 without an attack."""
    return EPSILONS.get(config.adversarial, 0.0) if config.epsilon is None else config.epsilon


def label_smoothing(config: MethodConfig) -> float:
    """The label smoothing, 0..1: the one asked for or the loss's default."""
    usual = 0.0 if config.loss in WITHOUT_SMOOTHING else LABEL_SMOOTHING
    return usual if config.label_smoothing is None else config.label_smoothing


def balanced_twice(config: Config) -> str:
    """Return a line if settings that each balance the classes are combined; empty if not."""
    balanced = config.loss in ("balanced_softmax", "logit_adjustment", "paco", "gpaco")
    ways = [f"--loss {config.loss}"] if balanced else []
    ways += [f"--class-weights {config.class_weights}"] if config.class_weights != "none" else []
    ways += ["--sampler class_balanced"] if config.sampler == "class_balanced" else []
    what = f"{' and '.join(ways)} each balance the classes; together they favour the rare ones: leave one out"
    return what if len(ways) > 1 else ""


def make_criterion(config: MethodConfig, counts: Sequence[int]) -> nn.Module:
    """The loss on logits. `counts`: training images of each class."""
    if config.loss in ("balanced_softmax", "logit_adjustment"):
        tau = config.logit_tau if config.loss == "logit_adjustment" else 1.0
        return LogitAdjusted(counts, tau, label_smoothing(config))
    if config.loss == "ldam":
        return LDAM(counts, drw_start=config.drw_start)
    weights = class_weights(counts, config.class_weights)
    if config.loss == "focal":
        return Focal(config.focal_gamma, weights)
    return CrossEntropy(label_smoothing(config), weights)


def make_learner(model: nn.Module, config: Config, model_config: ModelConfig, counts: Sequence[int]) -> Learner:
    """The learner that the settings ask for, with its own parameters beside the model's. Raises `SettingsError`."""
    if config.loss in ("paco", "gpaco"):
        return PaCo(
            model,
            counts,
            generalized=config.loss == "gpaco",
            alpha=config.paco_alpha,
            temperature=config.paco_temperature,
            queue_size=config.paco_queue,
            dim=config.paco_dim,
            momentum=config.paco_momentum,
            smoothing=label_smoothing(config),
        )
    criterion = make_criterion(config, counts)
    if config.adversarial != "none":
        learner = FastAT if config.adversarial == "fast_at" else AdvProp
        return learner(model, criterion, model_config.mean, model_config.std, attack_epsilon(config) / 255)
    if config.loss == "ldam":
        return CosineSupervised(model, criterion)
    if config.head_only:
        return HeadOnly(model, criterion)
    if config.mixup <= 0 and config.cutmix <= 0:
        return Supervised(model, criterion)
    if (images := sum(counts)) < config.batch_size and images % 2:  # all images are one batch
        what = f"--batch-size {config.batch_size} with --mixup or --cutmix on {images} images"
        raise SettingsError(f"{what}: take {images - 1} or a lower even number")
    mix = MixBatch(config, label_smoothing(config), model_config.num_classes, config.batch_size)
    return Supervised(model, criterion, mix)
