"""Temperature scaling: the fit against SciPy's minimiser, the folded head, and what cannot be calibrated."""

import json
import re
from pathlib import Path

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn import functional as F

from models import ModelConfig, create_model, linear_head, load_checkpoint, pooled_features, save_checkpoint
from tests.full_disk import files_up_to
from training import calibrate as script
from training.augment import eval_transform
from training.calibrate import Config, calibrate, fit_temperature
from training.data import open_images
from training.evaluate import Config as EvaluateConfig
from training.evaluate import evaluate
from training.settings import SettingsError

SIZE = 32


def labelled(count: int, classes: int, temperature: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and classes drawn from their probabilities at `temperature`: the one to be found, up to the draw."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, classes, generator=generator)
    targets = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    return logits, targets


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("classes", "temperature"), [(2, 1.0), (10, 0.3), (10, 1.0), (10, 4.0), (100, 20.0)])
def test_the_fit_minimises_the_likelihoods_negative_logarithm(classes: int, temperature: float, factor: float) -> None:
    logits, targets = labelled(4000, classes, temperature, seed=classes)
    logits = logits * factor
    found = fit_temperature(logits, targets)
    best = minimize_scalar(
        lambda log: F.cross_entropy(logits.double() * torch.tensor(-log).exp(), targets).item(),
        bracket=(torch.tensor(found).log().item() - 1, torch.tensor(found).log().item() + 1),
        tol=1e-10,
    )
    assert found == pytest.approx(float(torch.tensor(best.x).exp()), rel=1e-5)
    assert found == pytest.approx(temperature * factor, rel=0.2), "that of the draw"


def test_logits_without_a_best_temperature_are_refused() -> None:
    logits, targets = labelled(50, 4, 1.0, seed=0)
    right = F.one_hot(targets, 4) * 9.0 + logits / 9
    with pytest.raises(ValueError, match="50 of 50 answers are right, and the likelihood grows without end"):
        fit_temperature(right, targets)
    right[7] = right[7].roll(1)  # a single wrong one: the optimum is finite again
    assert 0 < fit_temperature(right, targets) < 10
    with pytest.raises(ValueError, match="no higher than those of the other classes"):
        fit_temperature(-right, targets)
    with pytest.raises(ValueError, match="no higher than"):
        fit_temperature(-F.one_hot(targets, 4).float(), targets)


def too_sure(folder: Path, arch: str, digits: Path) -> Path:
    """A checkpoint whose head alone is fitted to the digits, by ridge regression, with logits far too large."""
    torch.manual_seed(0)
    config = ModelConfig(arch, 3, image_size=SIZE, crop_pct=1.0, labels=["0", "1", "4"])
    model = create_model(arch, 3, SIZE)
    dataset = open_images(digits / "train", eval_transform(config))
    images = torch.stack([image for image, _ in dataset])
    wanted = 2.0 * F.one_hot(torch.tensor(dataset.targets), 3) + torch.randn(len(images), 3)
    with torch.no_grad():
        model.train()(images)  # the batch norms see them
        features = pooled_features(model.eval(), images)
        centred, head = features - features.mean(0), linear_head(model)
        ridge = centred.T @ centred + 0.1 * len(images) * centred.var() * torch.eye(centred.shape[1])
        head.weight.copy_(9 * torch.linalg.solve(ridge, centred.T @ (wanted - wanted.mean(0))).T)
        head.bias.copy_(9 * wanted.mean(0) - head.weight @ features.mean(0))
    save_checkpoint(folder, model, config)
    (folder / "args.json").write_text(json.dumps({"class_counts": [32, 32, 32], "lr": 0.1}))
    return folder


@pytest.fixture(scope="module")
def checkpoint(small_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return too_sure(tmp_path_factory.mktemp("sure"), "replknet_nano", small_digits)


@pytest.mark.parametrize("arch", ["replknet_nano", "timm/resnet18"])
def test_a_calibrated_checkpoint_answers_alike_and_is_nearer_the_truth(
    arch: str, small_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    before, after, val = tmp_path / "before", tmp_path / "after", small_digits / "val"
    too_sure(before, arch, small_digits)
    options = ["--checkpoint", before, "--data", val, "--output", after, "--device", "cpu", "--batch-size", "7"]
    monkeypatch.setattr("sys.argv", ["it", *map(str, options)])
    assert script.main() == 0
    said = capsys.readouterr().out
    (was, _, old), (confusion, _, new) = (
        evaluate(EvaluateConfig(folder, val, predictions=folder / "p.csv", batch_size=7, device="cpu"))
        for folder in (before, after)
    )
    assert confusion.equal(was)
    assert new["top1"] == old["top1"] < 1
    assert new["calibration_error"] < old["calibration_error"] - 0.02
    assert new["nll"] < old["nll"] - 0.1
    shown = re.search(r"likelihood ([\d.]+) -> ([\d.]+)\nexpected calibration error ([\d.]+)% -> ([\d.]+)%\n", said)
    assert shown is not None
    figures = [old["nll"], new["nll"], 100 * old["calibration_error"], 100 * new["calibration_error"]]
    assert [float(each) for each in shown.groups()] == pytest.approx(figures, rel=1e-3)
    ranks = [[line.split(",")[2::2] for line in (f / "p.csv").read_text().splitlines()] for f in (before, after)]
    assert ranks[0] == ranks[1], "answer, answer2, ..: the order of the classes"
    (model, config), (changed, same) = load_checkpoint(before), load_checkpoint(after)
    assert config == same
    arguments = json.loads((after / "args.json").read_text())
    temperature = arguments.pop("temperature")
    assert f"temperature {temperature:.4f}, fitted to 24 images" in said
    nothing = {"tau_norm": 0.0, "logit_adjustment": 0.0}
    assert arguments == {"class_counts": [32, 32, 32], "checkpoint": str(before), **nothing}
    (name,) = (name for name, module in model.named_modules() if module is linear_head(model))
    for key, tensor in model.state_dict().items():
        expected = tensor / temperature if key.startswith(f"{name}.") else tensor
        torch.testing.assert_close(changed.state_dict()[key], expected, rtol=1e-6, atol=0, msg=key)


def test_calibrations_multiply_and_tau_norm_would_undo_them(
    checkpoint: Path, small_digits: Path, tmp_path: Path
) -> None:
    val = small_digits / "val"
    first, *_ = calibrate(Config(checkpoint, val, tmp_path / "first", device="cpu"))
    again, *_ = calibrate(Config(tmp_path / "first", val, tmp_path / "second", device="cpu"))
    assert again == pytest.approx(1, rel=1e-3)
    assert json.loads((tmp_path / "second/args.json").read_text())["temperature"] == pytest.approx(first * again)
    copied = EvaluateConfig(tmp_path / "first", val, logit_adjustment=1.0, save=tmp_path / "copied", device="cpu")
    evaluate(copied)
    assert json.loads((tmp_path / "copied/args.json").read_text())["temperature"] == first
    with pytest.raises(SettingsError, match=rf"has had temperature {first} already: correct {checkpoint}, which"):
        evaluate(EvaluateConfig(tmp_path / "first", val, tau_norm=1.0, device="cpu"))


def test_a_head_that_is_not_linear_is_named(small_digits: Path, tmp_path: Path) -> None:
    arch = "timm/repvit_m0_9"
    config = ModelConfig(arch, 3, image_size=SIZE, crop_pct=1.0, labels=["0", "1", "4"])
    save_checkpoint(tmp_path / "from", create_model(arch, 3), config)
    with pytest.raises(ValueError, match="ends in RepVitClassifier: this method needs a linear layer with a bias"):
        calibrate(Config(tmp_path / "from", small_digits / "val", tmp_path / "to", device="cpu"))
    assert not (tmp_path / "to").exists()


def test_another_checkpoint_is_not_written_over_and_figures_are_shown_on_a_full_disk(
    checkpoint: Path, small_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(script, "open_labelled", None)  # called, it would be a TypeError
        with pytest.raises(SettingsError, match=f"--output {checkpoint} holds a checkpoint"):
            calibrate(Config(checkpoint, small_digits / "val", checkpoint, device="cpu"))
    options = ["--checkpoint", checkpoint, "--data", small_digits / "val", "--output", tmp_path / "to"]
    monkeypatch.setattr("sys.argv", ["it", *map(str, options), "--device", "cpu"])
    with files_up_to(50):
        assert script.main() == 1
    said = capsys.readouterr()
    assert "expected calibration error" in said.out
    assert "cannot be written (" in said.err
