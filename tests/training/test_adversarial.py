"""Learners that train on attacks: Fast-AT and AdvProp."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from models import create_model, load_checkpoint, reparameterize
from training.adversarial import AdvProp, FastAT, OverfittingWatch, add_auxiliary, strip_auxiliary, use_auxiliary
from training.config import Config
from training.finetune import train
from training.learners import CrossEntropy
from training.loop import StopTraining
from training.settings import SettingsError

MEAN, STD = [0.1, 0.5, 0.6], [0.2, 0.3, 0.4]
EPSILON = 8 / 255
QUIET = Console(quiet=True)


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
