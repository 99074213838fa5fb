"""Learners that train on attacks: Fast-AT and AdvProp."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from models import create_model, load_checkpoint, reparameterize
from tests.training.runs import QUIET, Killed, Tiny, before_step, die
from training import adversarial
from training.adversarial import AdvProp, FastAT, OverfittingWatch, add_auxiliary, strip_auxiliary, use_auxiliary
from training.attacks import PixelModel
from training.finetune import train
from training.loop import StopTraining
from training.losses import CrossEntropy
from training.settings import SettingsError

MEAN, STD = [0.1, 0.5, 0.6], [0.2, 0.3, 0.4]
EPSILON = 8 / 255


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
    learner = AdvProp(network, CrossEntropy(), MEAN, STD, epsilon=0.0).eval()
    pixels = torch.rand(3, 3, 32, 32)
    images, targets = learner.pixel_model.normalize(pixels), torch.tensor([0, 1, 2])
    torch.testing.assert_close(learner(images, targets), 2 * F.cross_entropy(network(images), targets))
    with pytest.raises(SettingsError, match="needs batch norms"):
        AdvProp(nn.Linear(2, 2), CrossEntropy(), MEAN, STD, 0.1)


def test_advprop_is_the_papers_step_on_two_models() -> None:
    """Against two plain models that share all but their batch norms; float64, statistics and weights apart."""
    epsilon, steps = 2 / 255, 3
    torch.manual_seed(0)
    main = create_model("replknet_nano", 4).double()
    auxiliary = deepcopy(main)
    for network in (main, auxiliary):
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.normal_(norm.running_mean, std=0.3)
                nn.init.uniform_(norm.running_var, 0.5, 2.0)
                nn.init.normal_(norm.weight, mean=1.0, std=0.3)
                nn.init.normal_(norm.bias, std=0.3)
    learner = AdvProp(deepcopy(main), CrossEntropy(), MEAN, STD, epsilon).double()
    norms = dict(auxiliary.named_modules())
    for name, module in learner.model.named_modules():
        if hasattr(module, "auxiliary"):
            module.auxiliary.load_state_dict(norms[name].state_dict())
    pixels, targets = torch.rand(3, 3, 32, 32).double(), torch.tensor([0, 1, 2])
    mean, std = (torch.tensor(values).double().view(1, 3, 1, 1) for values in (MEAN, STD))
    torch.manual_seed(1)
    loss = learner.train()((pixels - mean) / std, targets)
    loss.backward()

    torch.manual_seed(1)
    attacked = (pixels + (2 * torch.rand(pixels.shape, dtype=pixels.dtype) - 1) * epsilon).clamp(0, 1)
    auxiliary.eval()
    for _ in range(steps):
        attacked.requires_grad_(True)
        attack_loss = F.cross_entropy(auxiliary((attacked - mean) / std), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(attack_loss, attacked)
        moved = attacked.detach() + gradient.sign() / 255
        attacked = torch.maximum(torch.minimum(moved, pixels + epsilon), pixels - epsilon).clamp(0, 1)
    clean_loss = F.cross_entropy(main.train()((pixels - mean) / std), targets)
    adversarial_loss = F.cross_entropy(auxiliary.train()((attacked - mean) / std), targets)
    assert (adversarial_loss - clean_loss).abs() > 0.01
    torch.testing.assert_close(loss, clean_loss + adversarial_loss)
    (clean_loss + adversarial_loss).backward()
    trained = dict(learner.model.named_parameters())
    of_auxiliary = dict(auxiliary.named_parameters())
    for name, parameter in main.named_parameters():
        layer, _, tensor = name.rpartition(".")
        separate = trained.get(f"{layer}.auxiliary.{tensor}")
        shared = 0 if separate is not None else of_auxiliary[name].grad
        torch.testing.assert_close(trained[name].grad, parameter.grad + shared)
        if separate is not None:
            torch.testing.assert_close(separate.grad, of_auxiliary[name].grad)


def test_strip_leaves_plain_models() -> None:
    network = create_model("replknet_nano", 2)
    add_auxiliary(network)
    assert any("auxiliary" in name for name in network.state_dict())
    stripped = strip_auxiliary(network)
    assert not any("auxiliary" in name for name in stripped.state_dict())
    assert any("auxiliary" in name for name in network.state_dict()), "the trained model keeps them"


def test_fast_at_trains_on_attacked_images() -> None:
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
    learner.train()(learner.pixel_model.normalize(pixels), targets)
    assert int(network.norm.num_batches_tracked) == 1, "of what is trained on alone"


def test_fast_at_is_its_formula_on_a_linear_model() -> None:
    """delta = project(u + 1.25 epsilon sign(gradient)), u uniform in the ball, the gradient at the clipped x + u."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4)).double()
    learner = FastAT(network, CrossEntropy(), MEAN, STD, EPSILON).double().train()
    pixels, targets = torch.rand(5, 3, 32, 32).double(), torch.tensor([0, 1, 2, 3, 0])
    mean, std = (torch.tensor(values).double().view(1, 3, 1, 1) for values in (MEAN, STD))
    torch.manual_seed(1)
    loss = learner((pixels - mean) / std, targets)

    torch.manual_seed(1)
    start = (pixels + (2 * torch.rand(pixels.shape, dtype=pixels.dtype) - 1) * EPSILON).clamp(0, 1)
    error = network((start - mean) / std).softmax(1) - F.one_hot(targets, 4)
    gradient = (error @ network[1].weight).view_as(pixels) / std
    delta = (start - pixels + 1.25 * EPSILON * gradient.sign()).clamp(-EPSILON, EPSILON)
    attacked = (pixels + delta).clamp(0, 1)
    torch.testing.assert_close(loss, F.cross_entropy(network((attacked - mean) / std), targets))
    assert loss > F.cross_entropy(network((pixels - mean) / std), targets) + 0.01


class Labelled(TensorDataset):
    """A data set that knows its targets."""

    def __init__(self, images: Tensor, targets: list[int]) -> None:
        super().__init__(images, torch.tensor(targets))
        self.targets = targets


def test_the_watch_sees_the_same_images_of_all_classes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """val/ is sorted by class, so its first batch would have only one. The images are the same in each epoch, after
    resuming, and for every batch size.
    """
    seen: list[int] = []
    strengths: set[tuple[float, int]] = set()
    attack = adversarial.pgd

    def remember(model: nn.Module, pixels: Tensor, targets: Tensor, epsilon: float, steps: int) -> Tensor:
        seen.extend(targets.tolist())
        strengths.add((epsilon, steps))
        return attack(model, pixels, targets, epsilon, steps)

    monkeypatch.setattr(adversarial, "pgd", remember)
    train(tiny(tmp_path / "all", epochs=1, batch_size=8, adversarial="fast_at", amp="bf16"), QUIET)
    assert seen == [0] * 8 + [1] * 8 + [2] * 8, "all that there are"
    seen.clear()
    monkeypatch.setattr(adversarial, "WATCHED", 6)
    config = tiny(tmp_path / "run", batch_size=4, adversarial="fast_at", epsilon=2.0)
    with monkeypatch.context() as patch:
        before_step(30, die, patch)
        with pytest.raises(Killed):
            train(config, QUIET)
    train(config, QUIET)
    assert seen == [0, 0, 1, 1, 2, 2] * 2
    assert strengths == {(8 / 255, 5), (2 / 255, 5)}


def test_an_answer_that_is_always_the_same_is_no_robustness() -> None:
    """Most images are of class 0, so a model that always answers 0 is mostly right, attacked or not."""
    images = torch.zeros(4, 3, 4, 4)
    images[3:] = 1.0
    holder = nn.Module()
    watch = OverfittingWatch(holder, Labelled(images, [0, 0, 0, 1]), 3, epsilon=0.1)
    flat = nn.Linear(48, 2)
    nn.init.zeros_(flat.weight)
    model = PixelModel(nn.Sequential(nn.Flatten(), nn.Dropout(1.0), flat), [0.0] * 3, [1.0] * 3).train()
    with torch.no_grad():
        flat.bias.copy_(torch.tensor([1.0, 0.0]))
    assert watch(model, "cpu") == 0.75
    assert holder.best_robust == 0
    with torch.no_grad():
        flat.weight[1] = 1.0
        flat.bias[0] = 24.0
    assert watch(model, "cpu") == 1.0
    assert holder.best_robust == 1
    nn.init.zeros_(flat.weight)
    with pytest.raises(StopTraining, match=r"fell from 100\.0% to 75\.0%"):
        watch(model, "cpu")


def test_catastrophic_overfitting_stops_the_run(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = OverfittingWatch(nn.Module(), Labelled(torch.zeros(3, 3, 4, 4), [0, 1, 2]), 2, EPSILON, drop=0.2)
    for accuracy in (0.1, 0.5, 0.35):
        watch.check(accuracy)
    with pytest.raises(StopTraining, match=r"fell from 50\.0% to 29\.0% \(catastrophic overfitting\)"):
        watch.check(0.29)
    fallen = iter([0.6, 0.1, 0.6, 0.6, 0.1])
    monkeypatch.setattr(OverfittingWatch, "__call__", lambda self, *_: self.check(value := next(fallen)) or value)
    train(tiny(tmp_path / "run", epochs=3, adversarial="fast_at"), QUIET)
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["robust"] for line in log] == [0.6], "the second epoch is not kept"
    load_checkpoint(tmp_path / "run")
    next(fallen)
    train(tiny(tmp_path / "allowed", adversarial="fast_at", overfitting_drop=0.55), QUIET)
    assert not list(fallen)
