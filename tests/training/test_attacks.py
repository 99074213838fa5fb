"""Attacks stay in the ball, raise the loss and leave the model alone; learners that train on them."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from models import ModelConfig, create_model, load_checkpoint, reparameterize, save_checkpoint
from training import attack as attack_script
from training.adversarial import AdvProp, FastAT, OverfittingWatch, add_auxiliary, strip_auxiliary, use_auxiliary
from training.attack import attack_checkpoint, result_table
from training.attacks import PixelModel, apgd_ce, apgd_checkpoints, evaluating, fgsm, losses_and_gradient, pgd
from training.config import Config
from training.finetune import train
from training.learners import CrossEntropy
from training.loop import StopTraining
from training.settings import SettingsError

MEAN, STD = [0.1, 0.5, 0.6], [0.2, 0.3, 0.4]
EPSILON = 8 / 255
QUIET = Console(quiet=True)
ATTACKS = {
    "fgsm": lambda model, x, y: fgsm(model, x, y, EPSILON),
    "pgd": lambda model, x, y: pgd(model, x, y, EPSILON, steps=5, restarts=2),
    "apgd": lambda model, x, y: apgd_ce(model, x, y, EPSILON, steps=12),
}


@pytest.fixture(scope="module")
def model() -> PixelModel:
    torch.manual_seed(0)
    network = create_model("replknet_nano", 4).train()
    for _ in range(3):
        network(torch.randn(16, 3, 32, 32))
    return PixelModel(network, MEAN, STD).eval()


@pytest.fixture(scope="module")
def batch(model: PixelModel) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    pixels = torch.rand(6, 3, 32, 32)
    pixels[:2] = pixels[:2].round()  # at the border of what a pixel can be
    return pixels, model(pixels).argmax(1)


def cross_entropy(model: nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
    with torch.no_grad():
        return F.cross_entropy(model(pixels), targets, reduction="none")


@pytest.mark.parametrize("name", ATTACKS)
def test_in_the_ball_and_stronger(name: str, model: PixelModel, batch: tuple[Tensor, Tensor]) -> None:
    pixels, targets = batch
    adversarial = ATTACKS[name](model, pixels, targets)
    assert (adversarial - pixels).abs().max() <= EPSILON + 1e-6
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not adversarial.requires_grad
    assert (cross_entropy(model, adversarial, targets) > cross_entropy(model, pixels, targets)).all()
    assert torch.equal(pixels, batch[0]), "the images themselves are not touched"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_fgsm_is_its_formula(batch: tuple[Tensor, Tensor]) -> None:
    """On a linear model the gradient is known: sum over classes of (p - onehot) W, divided by std."""
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).double()
    model, pixels, targets = PixelModel(linear, MEAN, STD).double(), batch[0].double(), batch[1]
    error = model(pixels).softmax(1) - F.one_hot(targets, 4)
    gradient = (error @ linear[1].weight).view_as(pixels) / model.std
    losses, found, _ = losses_and_gradient(model, pixels, targets)
    torch.testing.assert_close(found, gradient)
    torch.testing.assert_close(losses, F.cross_entropy(model(pixels), targets, reduction="none"))
    expected = (pixels + EPSILON * gradient.sign()).clamp(0, 1)
    torch.testing.assert_close(fgsm(model, pixels, targets, EPSILON), expected)
    torch.testing.assert_close(pgd(model, pixels, targets, EPSILON, 1, EPSILON, from_random=False), expected)


def test_stronger_attacks_are_stronger(model: PixelModel, batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    mean = {name: cross_entropy(model, attack(model, *batch), batch[1]).mean() for name, attack in ATTACKS.items()}
    assert mean["apgd"] >= mean["fgsm"]
    assert mean["pgd"] >= mean["fgsm"]


def test_restarts_keep_the_best_of_each_image(model: PixelModel, batch: tuple[Tensor, Tensor]) -> None:
    """A restart that misclassifies is kept whatever the loss of the others."""
    torch.manual_seed(3)
    one = cross_entropy(model, pgd(model, *batch, 2 / 255, steps=1), batch[1])
    torch.manual_seed(3)
    adversarial = pgd(model, *batch, 2 / 255, steps=1, restarts=4)
    several = cross_entropy(model, adversarial, batch[1])
    wrong = model(adversarial).argmax(1) != batch[1]
    assert ((several >= one - 1e-6) | wrong).all()


def test_apgd_looks_back_where_the_paper_does() -> None:
    assert apgd_checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert apgd_checkpoints(10) == [3, 5, 6, 7, 8, 9, 10]


def test_apgd_finds_the_corner_of_a_linear_model(batch: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    linear = PixelModel(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)), MEAN, STD)
    pixels, targets = batch[0], torch.zeros(6, dtype=torch.int64)
    best = cross_entropy(linear, fgsm(linear, pixels, targets, EPSILON), targets)  # two classes: exactly optimal
    found = cross_entropy(linear, apgd_ce(linear, pixels, targets, EPSILON, steps=30), targets)
    torch.testing.assert_close(found, best, rtol=1e-4, atol=1e-5)


def test_modes_come_back(model: PixelModel) -> None:
    network = create_model("replknet_nano", 2).train()
    network.norm.eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert network.training
    assert not network.norm.training


@pytest.mark.parametrize(("arguments", "message"), [((1.5,), r"epsilon 1\.5"), ((0.1, 0), "steps 0")])
def test_impossible_attacks(arguments: tuple, message: str, model: PixelModel, batch: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(SettingsError, match=message):
        pgd(model, *batch, *arguments)


def test_auxiliary_norms_are_apart_and_stripped_for_serving() -> None:
    """The clean path trains the main statistics, the attacked path the auxiliary ones; the stripped model is plain."""
    torch.manual_seed(0)
    network = create_model("replknet_nano", 4)
    keys = list(network.state_dict())
    learner = AdvProp(network, CrossEntropy(), MEAN, STD, epsilon=4 / 255).train()
    assert learner.steps == 5
    optimizer = torch.optim.SGD(learner.parameters(), 0.1)
    for _ in range(2):
        learner(torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])).backward()
        optimizer.step()
    norm = network.norm
    assert not torch.equal(norm.running_mean, norm.auxiliary.running_mean)
    assert not torch.equal(norm.weight, norm.auxiliary.weight)
    assert int(norm.num_batches_tracked) == int(norm.auxiliary.num_batches_tracked) == 2, "attacks move no statistics"
    network.eval()
    images = torch.randn(3, 3, 32, 32)
    served = learner.deployed(network)
    assert list(served.state_dict()) == keys
    assert type(served.norm) is nn.BatchNorm2d
    torch.testing.assert_close(served(images), network(images), rtol=0, atol=0)
    exact = served.double()(images.double())
    torch.testing.assert_close(reparameterize(served)(images.double()), exact, rtol=1e-9, atol=1e-9)
    with use_auxiliary(network):
        assert not torch.allclose(network(images), exact.float())
    torch.testing.assert_close(network(images), exact.float(), rtol=1e-4, atol=1e-4)


def test_advprop_loss_is_the_sum_of_both_paths() -> None:
    torch.manual_seed(0)
    network = create_model("replknet_nano", 4).eval()
    learner = AdvProp(network, CrossEntropy(), MEAN, STD, epsilon=0.0, steps=1, step=0.0).eval()
    pixels = torch.rand(3, 3, 32, 32)
    images, targets = learner.pixel_model.normalize(pixels), torch.tensor([0, 1, 2])
    torch.testing.assert_close(learner(images, targets), 2 * F.cross_entropy(network(images), targets))
    with pytest.raises(SettingsError, match="needs batch norms"):
        AdvProp(nn.Linear(2, 2), CrossEntropy(), MEAN, STD, 0.1)


def test_strip_leaves_plain_models() -> None:
    network = create_model("replknet_nano", 2)
    add_auxiliary(network)
    assert any("auxiliary" in name for name in network.state_dict())
    stripped = strip_auxiliary(network)
    assert not any("auxiliary" in name for name in stripped.state_dict())
    assert any("auxiliary" in name for name in network.state_dict()), "the trained model keeps them"


def test_fast_at_trains_on_attacked_images(model: PixelModel) -> None:
    torch.manual_seed(0)
    seen: list[Tensor] = []
    network = create_model("replknet_nano", 4).eval()
    learner = FastAT(network, CrossEntropy(), MEAN, STD, EPSILON)
    network.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach()))
    pixels, targets = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2])
    loss = learner(learner.pixel_model.normalize(pixels), targets)
    moved = learner.pixel_model.pixels(seen[-1]) - pixels
    assert 0.5 * EPSILON < moved.abs().max() <= EPSILON + 1e-5
    assert loss > F.cross_entropy(network(learner.pixel_model.normalize(pixels)), targets)


def test_catastrophic_overfitting_stops_the_run(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = nn.Module()
    watch = OverfittingWatch(holder, EPSILON, drop=0.2)
    for accuracy in (0.1, 0.5, 0.35):
        watch.check(accuracy)
    with pytest.raises(StopTraining, match=r"fell from 50\.0% to 29\.0% \(catastrophic overfitting\)"):
        watch.check(0.29)
    fallen = iter([0.6, 0.1, 0.6])
    monkeypatch.setattr(OverfittingWatch, "__call__", lambda self, *_: self.check(value := next(fallen)) or value)
    train(tiny(tmp_path / "run", epochs=3, adversarial="fast_at"), QUIET)
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["robust"] for line in log] == [0.6], "the second epoch is not kept"
    load_checkpoint(tmp_path / "run")


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
    checkpoint: Path, small_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "robust.json"
    options = ["--checkpoint", str(checkpoint), "--data", str(small_digits / "val"), "--steps", "2", "--images", "10"]
    monkeypatch.setattr("sys.argv", ["attack", *options, "--batch-size", "4", "--save", str(saved), "--device", "cpu"])
    assert attack_script.main() == 0
    results = {entry["attack"]: entry for entry in json.loads(saved.read_text())["results"]}
    assert list(results) == ["clean", "fgsm", "pgd", "apgd"]
    assert all(entry["images"] == 10 for entry in results.values())
    assert results["pgd"]["settings"] == {"epsilon": 8 / 255, "steps": 2, "step": 10 / 255, "restarts": 1}
    assert results["clean"]["right"] >= max(results[name]["right"] for name in ("fgsm", "pgd", "apgd"))


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
        def __init__(self, model: nn.Module, norm: str, eps: float, **_: object) -> None:
            assert (norm, eps) == ("Linf", 8 / 255)

        def run_standard_evaluation(self, pixels: Tensor, targets: Tensor, bs: int) -> Tensor:
            assert 0 <= pixels.min() <= pixels.max() <= 1
            return 1 - pixels

    module = type(sys)("autoattack")
    module.AutoAttack = Suite  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "autoattack", module)
    config = attack_script.Config(checkpoint, small_digits / "val", ("autoattack",), images=4, device="cpu")
    results = attack_checkpoint(dataclasses.replace(config, images=4))
    assert [result.attack for result in results] == ["clean", "autoattack"]
    assert result_table(results).row_count == 2
