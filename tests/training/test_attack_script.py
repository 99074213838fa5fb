"""The script that reports clean and robust accuracy with the settings of every attack."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models import ModelConfig, create_model, save_checkpoint
from tests.full_disk import files_up_to
from training import attack as attack_script
from training.attack import attack_checkpoint, make_attack, result_table
from training.settings import SettingsError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    network = create_model("replknet_nano", 3).train()
    network(torch.randn(8, 3, 32, 32))
    config = ModelConfig("replknet_nano", 3, image_size=32, crop_pct=1.0, labels=["0", "1", "4"])
    save_checkpoint(folder, network, config)
    return folder


def test_script_reports_accuracies_with_settings(
    checkpoint: Path,
    small_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    saved = tmp_path / "robust.json"
    options = ["--checkpoint", str(checkpoint), "--data", str(small_digits / "val"), "--steps", "2", "--count", "10"]
    monkeypatch.setattr("sys.argv", ["attack", *options, "--batch-size", "4", "--json", str(saved), "--device", "cpu"])
    assert attack_script.main() == 0
    results = {entry["attack"]: entry for entry in json.loads(saved.read_text())["results"]}
    assert list(results) == ["clean", "fgsm", "pgd", "apgd"]
    assert all(entry["images"] == 10 for entry in results.values())
    assert results["pgd"]["settings"] == {"epsilon": 8 / 255, "steps": 2, "step": 10 / 255, "restarts": 1}
    assert results["apgd"]["settings"] == {"epsilon": 8 / 255, "steps": 10, "restarts": 1}
    assert results["clean"]["right"] >= max(results[name]["right"] for name in ("fgsm", "pgd", "apgd"))
    out = capsys.readouterr().out
    assert "epsilon 8/255, steps 2, step 10/255, restarts 1" in out
    assert "apgd after 8 of 10 images\n" in out  # in a log, where there is no bar


def test_results_that_cannot_be_saved_are_shown(
    checkpoint: Path, small_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The disk is full; the results of the run before are kept."""
    saved = tmp_path / "robust.json"
    saved.write_text("of before")
    options = ["--checkpoint", str(checkpoint), "--data", str(small_digits / "val"), "--count", "4"]
    monkeypatch.setattr("sys.argv", ["attack", *options, "--attacks", "fgsm", "--json", str(saved), "--device", "cpu"])
    with files_up_to(50):
        assert attack_script.main() == 1
    said = capsys.readouterr()
    assert "fgsm" in said.out
    assert f"{saved} cannot be written (" in said.err
    assert saved.read_text() == "of before"
    assert list(tmp_path.iterdir()) == [saved]


def test_a_step_is_given_in_255ths(tmp_path: Path) -> None:
    _, settings = make_attack("pgd", attack_script.Config(tmp_path, tmp_path, epsilon=4.0, step=2.0))
    assert (settings["epsilon"], settings["step"]) == (4 / 255, 2 / 255)


class Brightness(nn.Module):
    """Class 0, 1 or 2 of a picture that is black, grey or white."""

    def forward(self, images: Tensor) -> Tensor:
        return -((images.mean((1, 2, 3))[:, None] - torch.tensor([-2.0, 0.2, 2.4])) ** 2)


def test_what_was_wrong_is_not_right_under_an_attack(
    checkpoint: Path, small_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as wrong even if the attacked image is classified right, as all are here."""
    load = attack_script.open_labelled
    monkeypatch.setattr(attack_script, "open_labelled", lambda given: (Brightness(), *load(given)[1:]))

    def help_it(model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
        helped = (targets / 2).view(-1, 1, 1, 1).expand_as(pixels)
        assert torch.equal(model(helped).argmax(1), targets)
        return helped

    monkeypatch.setattr(attack_script, "make_attack", lambda name, config: (help_it, {}))
    config = attack_script.Config(checkpoint, small_digits / "val", ("fgsm",), device="cpu")
    clean, attacked = attack_checkpoint(config)
    assert 0 < attacked.right == clean.right < clean.images


def test_random_starts_are_the_seeds(checkpoint: Path, small_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[float] = []

    def draw(model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
        drawn.append(float(torch.rand(())))
        return pixels

    monkeypatch.setattr(attack_script, "make_attack", lambda name, config: (draw, {}))
    for seed in (0, 0, 1):
        attack_checkpoint(attack_script.Config(checkpoint, small_digits / "val", ("pgd",), seed=seed, device="cpu"))
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_part_of_the_images_is_of_all_classes(
    checkpoint: Path, small_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are sorted by class: the first ones would all be of one."""
    seen: list[int] = []

    def remember(model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
        seen.extend(targets.tolist())
        return pixels

    monkeypatch.setattr(attack_script, "make_attack", lambda name, config: (remember, {}))
    config = attack_script.Config(checkpoint, small_digits / "val", ("fgsm",), count=6, device="cpu")
    assert [result.images for result in attack_checkpoint(config)] == [6, 6]
    assert sorted(seen) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 0}, "--count 0: it must be at least 1"),
        ({"epsilon": 300.0}, r"--epsilon 300\.0: it must be 0 to 255"),
        ({"epsilon": float("nan")}, "--epsilon nan: a finite"),
        ({"step": float("nan")}, "--step nan: a finite"),
        ({"step": float("inf")}, "--step inf: a finite"),
        ({"step": -2.0}, r"--step -2\.0: it must be at least 0"),
        ({"steps": 0}, "--steps 0: it must be at least 1"),
        ({"seed": -1}, "--seed -1"),
        ({"batch_size": 0}, "--batch-size 0: it must be at least 1"),
        ({"attacks": ("fgsm", "pgd", "fgsm")}, "--attacks fgsm pgd fgsm: name each attack once"),
        ({"attacks": ("fgsm",), "restarts": 10}, "--restarts 10 does nothing without --attacks pgd or apgd: add it"),
        ({"attacks": ("fgsm", "autoattack"), "steps": 50}, "--steps 50 does nothing without --attacks pgd or apgd"),
        ({"attacks": ("fgsm", "apgd"), "step": 1.0}, r"--step 1\.0 does nothing without --attacks pgd: add it"),
    ],
)
def test_settings_that_cannot_be(changes: dict, message: str, tmp_path: Path) -> None:
    """The same attack twice would be counted twice; a negative or empty step is no attack."""
    config = attack_script.Config(tmp_path, tmp_path, device="cpu")
    with pytest.raises(SettingsError, match=message):
        attack_checkpoint(dataclasses.replace(config, **changes))


def test_script_errors_are_one_line(
    checkpoint: Path, small_digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = attack_script.Config(checkpoint, small_digits / "val", ("autoattack",), device="cpu")
    monkeypatch.setitem(sys.modules, "autoattack", None)
    with pytest.raises(SettingsError, match="autoattack needs its package"):
        attack_checkpoint(config)
    monkeypatch.setattr("sys.argv", ["attack", "--checkpoint", "nowhere", "--data", str(small_digits / "val")])
    assert attack_script.main() == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_autoattack_is_handed_pixels(checkpoint: Path, small_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with the package's interface."""

    class Suite:
        def __init__(self, model: nn.Module, norm: str, eps: float, version: str, seed: int, **_: object) -> None:
            assert (norm, eps, version, seed) == ("Linf", 8 / 255, "standard", 3)

        def run_standard_evaluation(self, pixels: Tensor, targets: Tensor, bs: int) -> Tensor:
            assert 0 <= pixels.min() <= pixels.max() <= 1
            return 1 - pixels

    module = type(sys)("autoattack")
    module.AutoAttack = Suite  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "autoattack", module)
    config = attack_script.Config(checkpoint, small_digits / "val", ("autoattack",), count=4, seed=3, device="cpu")
    results = attack_checkpoint(config)
    assert [result.attack for result in results] == ["clean", "autoattack"]
    assert result_table(results).row_count == 2
