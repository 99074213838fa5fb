"""Learners made from settings, and settings that are refused."""

import dataclasses
import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from models import ModelConfig, create_model
from tests.training.runs import QUIET, Tiny
from training import finetune
from training.finetune import train
from training.finetune_config import Config
from training.long_tail import class_weights, log_prior
from training.methods import check_method, make_learner
from training.presets import PRESETS
from training.samplers import class_sampling
from training.settings import SettingsError

NANO = ModelConfig("replknet_nano", 3, image_size=32)


def learner_of(config: Config, counts: tuple[int, ...] = (32, 32, 32)) -> object:
    return make_learner(create_model("replknet_nano", 3), config, NANO, counts)


@pytest.mark.parametrize(
    ("method", "asked", "epsilon", "steps"),
    [
        ("fast_at", None, 8.0, None),
        ("fast_at", 0.0, 0.0, None),
        ("advprop", None, 4.0, 5),
        ("advprop", 2.0, 2.0, 3),
        ("advprop", 1.0, 1.0, 1),
    ],
)
def test_epsilon_is_the_papers_unless_asked(
    method: str, asked: float | None, epsilon: float, steps: int | None
) -> None:
    learner = learner_of(Config(adversarial=method, epsilon=asked))
    assert learner.epsilon == epsilon / 255
    assert getattr(learner, "steps", None) == steps


def test_settings_reach_the_learner() -> None:
    counts = (8, 4, 4)
    for loss, tau in (("logit_adjustment", 2.0), ("balanced_softmax", 1.0)):
        shift = learner_of(Config(loss=loss, logit_tau=tau), counts).criterion.shift
        torch.testing.assert_close(shift, tau * log_prior(counts))
    focal = learner_of(Config(loss="focal", focal_gamma=1.0, class_weights="inverse"), counts).criterion
    assert focal.gamma == 1.0
    assert torch.equal(focal.weight, class_weights(counts, "inverse"))
    assert learner_of(Config(loss="ldam", drw_start=0.5)).criterion.drw_start == 0.5
    mix = learner_of(Config(mixup=0.8, cutmix=0.5, label_smoothing=0.2)).mix.mix
    assert (mix.mixup_alpha, mix.cutmix_alpha, mix.label_smoothing, mix.num_classes) == (0.8, 0.5, 0.2, 3)
    sizes = {"paco_queue": 16, "paco_dim": 4}
    paco = learner_of(Config(loss="paco", paco_alpha=0.1, paco_temperature=0.3, paco_momentum=0.9, **sizes))
    assert (paco.alpha, paco.temperature, paco.momentum, paco.generalized) == (0.1, 0.3, 0.9, False)
    assert paco.queue.features.shape == (16, 4)
    assert learner_of(Config(loss="gpaco", **sizes)).generalized


def test_settings_reach_what_is_trained(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Mock(return_value={"top1": 0.0})
    monkeypatch.setattr(finetune, "fit", fit)
    changes = {"sampler": "progressive", "imbalance": 8.0, "drop_path": 0.3, "class_weights": "inverse"}
    train(tiny(tmp_path, **changes, augmentation="crop", min_crop_area=0.5), QUIET)
    learner, loader, *_ = fit.call_args.args
    assert torch.equal(learner.criterion.weight, class_weights((32, 11, 4), "inverse"))
    assert learner.model.stages[3].blocks[-1].drop_path.rate == 0.3
    drawn = class_sampling("progressive", [0] * 32 + [1] * 11 + [2] * 4, epochs=2)
    assert torch.equal(loader.batch_sampler.weights(1), drawn(1))
    assert tuple(loader.dataset.dataset.dataset.transform.transforms[0].scale) == (0.5, 1.0)


def test_another_seed_is_another_model_and_another_order(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads, orders = [], []
    for seed in (0, 1):
        fit = Mock(return_value={"top1": 0.0})
        monkeypatch.setattr(finetune, "fit", fit)
        train(tiny(tmp_path, seed=seed), QUIET)
        learner, loader, *_ = fit.call_args.args
        heads.append(learner.model.head.weight)
        orders.append(loader.batch_sampler.order(0))
        assert loader.dataset.seed == seed, "of what is varied in an image"
    assert not torch.equal(*heads)
    assert not torch.equal(*orders)


@pytest.mark.parametrize(
    ("loss", "asked", "smoothing"),
    [("cross_entropy", None, 0.1), ("gpaco", None, 0.1), ("balanced_softmax", 0.2, 0.2), ("cross_entropy", 0.0, 0.0)],
)
def test_label_smoothing_is_what_was_asked_or_the_default(loss: str, asked: float | None, smoothing: float) -> None:
    config = Config(loss=loss, label_smoothing=asked)
    check_method(config)
    learner = learner_of(config)
    criterion = getattr(learner, "criterion", None)
    found = learner.smoothing if criterion is None else getattr(criterion, "cross_entropy", criterion).label_smoothing
    assert found == smoothing


@pytest.mark.parametrize("loss", ["ldam", "focal", "paco"])
def test_label_smoothing_is_refused_where_there_is_none(loss: str) -> None:
    for fine in (None, 0.0):
        config = Config(loss=loss, label_smoothing=fine)
        check_method(config)
    config = Config(loss=loss, label_smoothing=0.1)
    with pytest.raises(SettingsError, match=rf"--label-smoothing 0\.1: {loss} has none"):
        check_method(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 8.0}, r"--epsilon 8\.0 does nothing without --adversarial fast_at or advprop"),
        ({"loss": "balanced_softmax", "logit_tau": 2.0}, r"--logit-tau 2\.0 .* --loss logit_adjustment"),
        ({"focal_gamma": 1.0}, "--focal-gamma .* --loss focal"),
        ({"loss": "focal", "drw_start": 0.5}, "--drw-start .* --loss ldam"),
        ({"paco_queue": 16}, "--paco-queue 16 .* --loss paco or gpaco"),
        ({"loss": "gpaco", "paco_momentum": 0.9}, r"--paco-momentum 0\.9 .* --loss paco: "),
        ({"augmentation": "affine", "min_crop_area": 0.08}, r"--min-crop-area 0\.08 .* --augmentation crop"),
        ({"augmentation": "none", "min_crop_area": 0.5}, "--min-crop-area .* --augmentation crop"),
        ({"augmentation": "affine", "flip": False}, "--no-flip does nothing without --augmentation crop: "),
        ({"affine_fill": "black"}, "--affine-fill black does nothing without --augmentation affine: choose that, or"),
        ({"preset": "digits", "augmentation": "none"}, "--affine-fill mean .* --augmentation affine"),
        ({"adversarial": "advprop", "overfitting_drop": 0.1}, "--overfitting-drop .* --adversarial fast_at"),
    ],
)
def test_a_setting_that_nothing_looks_at_is_refused(changes: dict, message: str) -> None:
    config = Config(**changes)
    with pytest.raises(SettingsError, match=message):
        check_method(config)


def test_a_presets_own_setting_is_not_refused() -> None:
    check_method(dataclasses.replace(PRESETS["digits"], augmentation="none"))
    check_method(dataclasses.replace(PRESETS["replknet_31b"], augmentation="affine"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_smoothing": -0.5}, r"--label-smoothing -0\.5: it must be 0 to 1"),
        ({"label_smoothing": 2.0}, "0 to 1"),
        ({"adversarial": "fast_at", "epsilon": -3.0}, "--epsilon -3.0: it must be 0 to 255"),
        ({"clip_grad": -1.0}, "--clip-grad -1.0: it must be at least 0"),  # it would turn the gradient round
        ({"weight_decay": -1.0}, "--weight-decay"),
        ({"mixup": -1.0}, "--mixup"),
        ({"seed": -1}, "--seed -1"),
        ({"threads": -1}, "--threads -1"),
        ({"threads": 100_000}, "--threads 100000: it must be 0 to 1024"),
        ({"global_batch_size": -8}, "--global-batch-size -8"),
        ({"seed": 2**63}, "--seed 9223372036854775808: it must be 0 to 9223372036854775807"),
        ({"batch_size": 0}, "--batch-size 0: it must be at least 1"),
        ({"epochs": 0}, "--epochs 0: it must be at least 1"),
        ({"warmup_epochs": float("nan")}, "--warmup-epochs nan: a finite number is needed"),
        ({"mixup": float("inf")}, "--mixup inf: a finite"),
        ({"imbalance": float("nan")}, "--imbalance nan: a finite"),
        ({"loss": "logit_adjustment", "logit_tau": float("nan")}, "--logit-tau nan: a finite"),
        ({"loss": "logit_adjustment", "logit_tau": -1.0}, "--logit-tau -1.0: it must be at least 0"),
        ({"loss": "paco", "paco_alpha": float("nan")}, "--paco-alpha nan: a finite"),
        ({"loss": "paco", "paco_alpha": -0.1}, "--paco-alpha -0.1: it must be at least 0"),
        ({"lr": 0.0}, r"--lr 0\.0: it must be above 0"),
        ({"lr": 1e-3, "min_lr": 1e-2}, r"--min-lr 0\.01: it must be at most --lr 0\.001, from which it falls"),
        ({"ema_decay": 1.0}, r"--ema-decay 1\.0: it must be at least 0 and below 1"),
        ({"min_crop_area": 0.0}, r"--min-crop-area 0\.0: it must be above 0 and at most 1"),
    ],
)
def test_a_number_out_of_range_is_refused_before_any_work(
    changes: dict, message: str, tiny: Tiny, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=message):
        train(tiny(tmp_path / "run", **changes), QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({"adversarial": "advprop"}, {"epsilon": 4.0, "label_smoothing": 0.1}),
        ({"loss": "ldam"}, {"epsilon": 0.0, "label_smoothing": 0.0}),
    ],
)
def test_what_holds_is_recorded(changes: dict, holds: dict, tiny: Tiny, tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", epochs=1, **changes), QUIET)
    recorded = json.loads((tmp_path / "run/args.json").read_text())
    assert {name: recorded[name] for name in holds} == holds


def test_one_odd_batch_cannot_be_mixed(tiny: Tiny, tmp_path: Path) -> None:
    """An imbalance of 8 leaves 32 + 11 + 4 images."""
    config = tiny(tmp_path / "run", mixup=0.8, batch_size=64, imbalance=8.0, epochs=1)
    with pytest.raises(SettingsError, match="--batch-size 64 with --mixup or --cutmix on 47 images: take 46"):
        train(config, QUIET)
    train(dataclasses.replace(config, batch_size=46), QUIET)
    learner_of(config, (32, 22, 16))  # more than a batch
    learner_of(config, (32, 11, 5))  # an even one
