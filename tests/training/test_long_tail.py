"""Long-tail methods, each against a computation from its paper in float64 with plain loops."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import create_model, load_checkpoint
from tests.training.runs import QUIET, Tiny
from training.accuracy import by_class, top1
from training.evaluate import Config as EvaluateConfig
from training.evaluate import evaluate
from training.finetune import train
from training.finetune_config import Config
from training.learners import CosineSupervised, HeadOnly
from training.long_tail import (
    adjust_logits,
    class_counts,
    class_weights,
    log_prior,
    long_tail_counts,
    long_tail_subset,
    shot_report,
    tau_normalize,
)
from training.losses import LDAM, CrossEntropy, Focal, LogitAdjusted
from training.methods import balanced_twice
from training.samplers import class_sampling
from training.settings import SettingsError

COUNTS = [500, 90, 7]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """A batch of unequal classes: the mean of their weights is not 1."""
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(6, 3, dtype=torch.float64, generator=generator), torch.tensor([0, 1, 2, 2, 2, 0])


def log_softmax(row: list[float], index: int) -> float:
    return row[index] - math.log(sum(math.exp(value) for value in row))


def close(actual: Tensor, expected: float) -> None:
    assert actual.item() == pytest.approx(expected, rel=1e-6)


def test_exponential_counts_and_subset() -> None:
    counts = long_tail_counts(500, 10, 100)
    assert counts == [int(500 * 0.01 ** (i / 9) + 1e-9) for i in range(10)]
    assert (counts[0], counts[-1]) == (500, 5)
    assert long_tail_counts(98, 2, 49) == [98, 2], "98 / 49 rounds to just below 2"
    assert long_tail_counts(10, 3, 100) == [10, 1, 1]
    assert long_tail_counts(4, 2, 1) == [4, 4]
    targets = [0] * 60 + [1] * 50 + [2] * 70
    kept = long_tail_subset(targets, 3, 25)
    assert class_counts([targets[i] for i in kept], 3) == [50, 10, 2]
    assert len(set(kept)) == len(kept)
    assert kept == long_tail_subset(targets, 3, 25) != long_tail_subset(targets, 3, 25, seed=1)
    with pytest.raises(SettingsError, match="class index 1 has no training image"):
        long_tail_subset([0, 2], 3, 10)
    for imbalance in (0.5, float("nan")):
        with pytest.raises(SettingsError, match=f"--imbalance {imbalance}"):
            long_tail_counts(10, 3, imbalance)


@pytest.mark.parametrize("rule", ["inverse", "inverse_sqrt", "effective"])
def test_class_weights(rule: str) -> None:
    formula = {
        "inverse": lambda n: 1 / n,
        "inverse_sqrt": lambda n: 1 / math.sqrt(n),
        "effective": lambda n: (1 - 0.9999) / (1 - 0.9999**n),
    }[rule]
    raw = [formula(n) for n in COUNTS]
    expected = [value * 3 / sum(raw) for value in raw]
    assert class_weights(COUNTS, rule).tolist() == pytest.approx(expected, rel=1e-6)
    assert class_weights(COUNTS, "none") is None
    with pytest.raises(SettingsError, match="class index 1 has no training image"):
        class_weights([3, 0], rule)


def test_weighted_smoothed_cross_entropy(batch: tuple[Tensor, Tensor]) -> None:
    logits, targets = batch
    weights = class_weights(COUNTS, "inverse_sqrt")
    expected = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        for index in range(3):
            share = 0.9 * (index == target) + 0.1 / 3
            expected -= weights[index].item() * share * log_softmax(row, index) / 6
    close(CrossEntropy(0.1, weights)(logits, targets), expected)
    soft = torch.nn.functional.one_hot(targets, 3).double()
    close(CrossEntropy(0.1)(logits, soft), CrossEntropy()(logits, targets).item())


@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_logit_adjustment_in_training_and_after(tau: float, batch: tuple[Tensor, Tensor]) -> None:
    logits, targets = batch
    priors = [n / sum(COUNTS) for n in COUNTS]
    expected = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        shifted = [value + tau * math.log(prior) for value, prior in zip(row, priors, strict=True)]
        expected -= log_softmax(shifted, target) / 6
    close(LogitAdjusted(COUNTS, tau)(logits, targets), expected)
    if tau == 1.0:  # balanced softmax: sum_j n_j exp(z_j)
        balanced = [
            -math.log(COUNTS[t] * math.exp(r[t]) / sum(n * math.exp(z) for n, z in zip(COUNTS, r, strict=True)))
            for r, t in zip(logits.tolist(), targets.tolist(), strict=True)
        ]
        close(LogitAdjusted(COUNTS)(logits, targets), sum(balanced) / 6)
    head = nn.Linear(4, 3).double()
    features = torch.randn(2, 4, dtype=torch.float64)
    before = head(features)
    adjust_logits(head, COUNTS, tau)
    torch.testing.assert_close(head(features), before - tau * log_prior(COUNTS).double())


def test_focal(batch: tuple[Tensor, Tensor]) -> None:
    logits, targets = batch
    weights = class_weights(COUNTS, "inverse")
    expected = 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        log_p = log_softmax(row, target)
        expected -= weights[target].item() * (1 - math.exp(log_p)) ** 2 * log_p / 6
    close(Focal(2.0, weights)(logits, targets), expected)
    close(Focal(0.0)(logits, targets), CrossEntropy()(logits, targets).item())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_has_a_gradient_where_p_rounds_to_1(gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [1.0, 0.0, 0.5]], requires_grad=True)
    Focal(gamma)(logits, torch.tensor([0, 1])).backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[0].any()
    assert logits.grad[1].all()


def test_focal_is_float32_under_autocast() -> None:
    """As cross entropy is; on a CPU autocast would compute its logarithms in bfloat16."""
    logits = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.arange(64) % 10
    with torch.autocast("cpu", torch.bfloat16):
        loss = Focal(2.0)(logits, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, Focal(2.0)(logits.float(), targets))


@pytest.mark.parametrize("gamma", [-0.5, math.nan])
def test_focal_refuses_a_gamma_that_prefers_the_easy(gamma: float) -> None:
    with pytest.raises(SettingsError, match=f"--focal-gamma {gamma}: it must be at least 0"):
        Focal(gamma)


def test_ldam_margins_and_deferred_weights(batch: tuple[Tensor, Tensor]) -> None:
    cosines, targets = batch[0].tanh(), batch[1]
    loss = LDAM(COUNTS, drw_start=0.7)
    raw = [n**-0.25 for n in COUNTS]
    margins = [value * 0.5 / max(raw) for value in raw]
    for epoch, weights in ((6, [1.0] * 3), (7, class_weights(COUNTS, "effective").tolist())):
        loss.start_epoch(epoch, 10)
        expected = 0.0
        for row, target in zip(cosines.tolist(), targets.tolist(), strict=True):
            scaled = [30 * (value - margins[target] * (index == target)) for index, value in enumerate(row)]
            expected -= weights[target] * log_softmax(scaled, target) / 6
        close(loss(cosines, targets), expected)
    with pytest.raises(SettingsError, match="class index 1 has no training image"):
        LDAM([3, 0])


def test_ldam_weighs_classes_from_its_place_in_the_run_on(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted, forward = [], LDAM.forward
    monkeypatch.setattr(LDAM, "forward", lambda self, *batch: weighted.append(self.weighted) or forward(self, *batch))
    train(tiny(tmp_path, loss="ldam", drw_start=0.5, batch_size=48), QUIET)
    assert weighted == [False] * 2 + [True] * 2


def test_cosine_learner_is_deployed_as_a_plain_head() -> None:
    torch.manual_seed(0)
    model = create_model("replknet_nano", 3).eval()
    learner = CosineSupervised(model, nn.Identity())
    learner.criterion.forward = lambda cosines, targets: cosines  # type: ignore[method-assign]
    images = torch.randn(4, 3, 32, 32)
    cosines, logits = learner(images, torch.zeros(4)), learner.deployed(model)(images)
    assert cosines.abs().max() <= 1
    lengths = model.forward_features(images).mean((2, 3)).norm(dim=1, keepdim=True)
    torch.testing.assert_close(logits, cosines * lengths)


def test_cosines_are_float32_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, features = create_model("replknet_nano", 3), torch.randn(4, 256)
    monkeypatch.setattr("training.learners.pooled_features", lambda *_: features)
    learner = CosineSupervised(model, nn.Identity())
    learner.criterion.forward = lambda cosines, targets: cosines  # type: ignore[method-assign]
    expected = F.cosine_similarity(features.double()[:, None], model.head.weight.double()[None], dim=2)
    with torch.autocast("cpu", torch.bfloat16):
        cosines = learner(torch.zeros(4, 3, 32, 32), torch.zeros(4))
    torch.testing.assert_close(cosines.double(), expected, rtol=0, atol=1e-6)


def test_tau_normalization() -> None:
    head = nn.Linear(4, 3)
    before = head.weight.detach().clone()
    tau_normalize(head, 0.5)
    for row, old in zip(head.weight, before, strict=True):
        torch.testing.assert_close(row, old / old.norm() ** 0.5)
    assert not head.bias.any()
    tau_normalize(head, 1.0)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(3))


def test_sampler_weights_are_the_papers() -> None:
    targets = [0] * 60 + [1] * 30 + [2] * 10
    for name, power in (("class_balanced", 0.0), ("square_root", 0.5)):
        weights = class_sampling(name, targets, 5)(0)
        share = [weights[:60].sum().item(), weights[60:90].sum().item(), weights[90:].sum().item()]
        expected = [n**power / sum(m**power for m in (60, 30, 10)) for n in (60, 30, 10)]
        assert share == pytest.approx(expected)
    progressive = class_sampling("progressive", targets, 5)
    assert progressive(0)[90:].sum().item() == pytest.approx(0.1)
    assert progressive(2)[90:].sum().item() == pytest.approx(0.5 * 0.1 + 0.5 / 3)
    assert progressive(4)[90:].sum().item() == pytest.approx(1 / 3)
    assert class_sampling("progressive", targets, 1)(0)[90:].sum().item() == pytest.approx(0.1)
    assert class_sampling("instance", targets, 5) is None
    with pytest.raises(SettingsError, match="--sampler none"):
        class_sampling("none", targets, 5)


def test_report_is_by_training_images() -> None:
    """At 100 and at 20 a class is medium; one without test images is in no group."""
    confusion = torch.tensor([[8, 2, 0, 0, 0], [5, 5, 0, 0, 0], [9, 0, 1, 0, 0], [7, 0, 0, 3, 0], [0, 0, 0, 0, 0]])
    answered = by_class(confusion)
    report = shot_report(answered, [101, 100, 20, 19, 19])
    groups = {"many": 0.8, "medium": (0.5 + 0.1) / 2, "few": 0.3}
    assert report == pytest.approx({"balanced": (0.8 + 0.5 + 0.1 + 0.3) / 4, **groups})
    assert "medium" not in shot_report(answered, [101, 101, 19, 19, 19])
    assert shot_report(answered, [30, 30, 30, 30, 20]) == {}
    assert shot_report(answered, [31, 30, 30, 30, 20]) != {}


def test_head_only_keeps_the_backbone(tiny: Tiny, tmp_path: Path) -> None:
    """cRT in two stages; the second trains the head alone, accumulated or not."""
    train(tiny(tmp_path / "first", epochs=1, imbalance=8.0), QUIET)
    second = {"weights": tmp_path / "first", "head_only": True, "sampler": "class_balanced", "epochs": 1}
    train(tiny(tmp_path / "second", **second), QUIET)
    train(tiny(tmp_path / "accumulated", batch_size=8, global_batch_size=16, **second), QUIET)
    states = {name: load_checkpoint(tmp_path / name)[0].state_dict() for name in ("first", "second", "accumulated")}
    for name, tensor in states["second"].items():
        assert torch.equal(tensor, states["first"][name]) == (not name.startswith("head.")), name
        torch.testing.assert_close(states["accumulated"][name], tensor, rtol=1e-3, atol=1e-4)
    assert HeadOnly(create_model("replknet_nano", 3), nn.Identity()).train().model.training is False


def test_corrections_after_training(tiny: Tiny, small_digits: Path, tmp_path: Path) -> None:
    train(tiny(tmp_path / "run", epochs=1, imbalance=8.0), QUIET)
    assert json.loads((tmp_path / "run/args.json").read_text())["class_counts"] == [32, 11, 4]
    log = json.loads((tmp_path / "run/log.jsonl").read_text())
    assert {"balanced", "medium", "few"} <= log.keys()
    common = {"checkpoint": tmp_path / "run", "data": small_digits / "val", "device": "cpu"}
    corrected = EvaluateConfig(**common, tau_norm=1.0, logit_adjustment=0.5, save=tmp_path / "corrected")
    accuracy = top1(by_class(evaluate(corrected)[0]))
    saved = EvaluateConfig(checkpoint=tmp_path / "corrected", data=small_digits / "val", device="cpu")
    assert top1(by_class(evaluate(saved)[0])) == accuracy
    head = load_checkpoint(tmp_path / "corrected")[0].head
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(head.bias, -0.5 * log_prior([32, 11, 4]))
    copied = dataclasses.replace(saved, save=tmp_path / "copied")
    evaluate(copied)
    for checkpoint in (saved.checkpoint, tmp_path / "copied"):
        for again, done in (
            ({"tau_norm": 0.7}, r"--tau-norm 1\.0 and --logit-adjustment 0\.5 already: correct .*, which"),
            ({"logit_adjustment": 1.0}, rf"{checkpoint} has had --logit-adjustment 0\.5 already"),
        ):
            with pytest.raises(SettingsError, match=done):
                evaluate(dataclasses.replace(saved, checkpoint=checkpoint, **again))
    (tmp_path / "corrected/args.json").unlink()
    with pytest.raises(SettingsError, match="needs class_counts"):
        evaluate(EvaluateConfig(checkpoint=tmp_path / "corrected", data=small_digits / "val", logit_adjustment=1.0))


CLASS_BALANCED = {"sampler": "class_balanced"}


@pytest.mark.parametrize(
    ("settings", "both"),
    [
        ({"loss": "balanced_softmax"} | CLASS_BALANCED, "--loss balanced_softmax and --sampler class_balanced"),
        ({"class_weights": "inverse"} | CLASS_BALANCED, "--class-weights inverse and --sampler class_balanced"),
        ({"loss": "balanced_softmax", "sampler": "square_root"}, ""),
        ({"loss": "ldam"} | CLASS_BALANCED, ""),
        ({"class_weights": "inverse"}, ""),
    ],
)
def test_two_corrections_are_noted(settings: dict, both: str) -> None:
    """On a long tail of the digits the classes with many images fell to 0 %."""
    words = "each balance the classes; together they favour the rare ones: leave one out"
    assert balanced_twice(Config(**settings)) == (f"{both} {words}" if both else "")
