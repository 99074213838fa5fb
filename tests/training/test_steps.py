"""What a step of the shared loop adds to the weights, and when its loss is read; mostly on one layer, for speed."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import training.loop
from tests.training.runs import QUIET, Killed, Tiny, before_step, die, records
from training.finetune import train
from training.loaders import make_loader
from training.loop import Learner, fit
from training.settings import LoopConfig
from training.state import load_state

IMAGES = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(24) % 3
RATE, CLIP = 0.5, 0.45


class OneLayer(Learner):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(4, 3, bias=False)
        nn.init.zeros_(self.model.weight)
        self.modes: list[bool] = []

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        self.modes.append(self.model.training)
        return F.cross_entropy(self.model(images), targets)


def loader(batch_size: int, images: Tensor = IMAGES) -> torch.utils.data.DataLoader:
    return make_loader(TensorDataset(images, TARGETS), batch_size, train=True, workers=0)


Run = Callable[..., OneLayer]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run(name, images, **changes): the weights after three epochs of SGD at a constant rate, without an average."""

    def make(name: str, images: Tensor = IMAGES, **changes: object) -> OneLayer:
        values = {"epochs": 3, "batch_size": 8, "optimizer": "sgd", "lr": RATE, "min_lr": RATE, "warmup_epochs": 0.0}
        values |= {"weight_decay": 0.0, "ema_decay": 0.0, "device": "cpu", "save_every": 1}
        config = LoopConfig(output=tmp_path / name, **{**values, **changes})
        learner = OneLayer()

        def save(folder: Path, _: nn.Module) -> None:
            (folder / "model.safetensors").touch()

        fit(
            learner,
            loader(config.batch_size, images),
            config,
            {},
            evaluate=lambda model: model.eval() and {},
            save=save,
            console=QUIET,
        )
        return learner

    return make


@pytest.mark.parametrize("clip", [0.0, CLIP])
@pytest.mark.parametrize(("amp", "close"), [("off", 1e-5), ("fp16", 1e-2)])
@pytest.mark.parametrize("batch_size", [8, 4], ids=["at once", "accumulated"])
def test_steps_are_those_of_the_gradients_mean(
    batch_size: int, amp: str, close: float, clip: float, run: Run, tmp_path: Path
) -> None:
    """A step uses the mean gradient of 8 images, however many are computed at once; its norm may be limited."""
    expected = nn.Linear(4, 3, bias=False)
    nn.init.zeros_(expected.weight)
    optimizer = torch.optim.SGD(expected.parameters(), lr=RATE, momentum=0.9, nesterov=True)
    batches, losses, norms = loader(8).batch_sampler, [], []
    for epoch in range(3):
        batches.set_position(epoch)
        for batch in batches:
            places = [place for place, _ in batch]
            loss = F.cross_entropy(expected(IMAGES[places]), TARGETS[places])
            (gradient,) = torch.autograd.grad(loss, expected.parameters())
            losses.append(loss.item())
            norms.append(gradient.norm().item())
            expected.weight.grad = gradient * (min(1.0, clip / norms[-1]) if clip else 1.0)
            optimizer.step()
    assert min(norms) < CLIP < max(norms)
    learner = run("run", batch_size=batch_size, global_batch_size=8, amp=amp, clip_grad=clip)
    torch.testing.assert_close(learner.model.weight, expected.weight, rtol=close, atol=close)
    means = [sum(losses[first : first + 3]) / 3 for first in (0, 3, 6)]
    assert [record["loss"] for record in records(tmp_path / "run")] == pytest.approx(means, rel=close)
    assert all(learner.modes), "an evaluation leaves it in evaluation mode"


def test_a_resumed_run_goes_on_at_its_fp16_scale(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first steps overflow and are skipped: with the initial scale, the next ones would be skipped as well."""
    large = {"images": 100 * IMAGES, "amp": "fp16"}
    whole = run("whole", **large)
    with monkeypatch.context() as patch:
        before_step(6, die, patch)
        with pytest.raises(Killed):
            run("cut", **large)
    assert load_state(tmp_path / "cut/last")["scaler"]["scale"] < 2.0**16
    assert torch.equal(run("cut", **large).model.weight, whole.model.weight)
    assert whole.model.weight.any()


@pytest.mark.parametrize("clip", [0.0, 2.5])
def test_nan_gradient_stops_with_the_step(
    clip: float, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, original = [], training.loop._backward

    def backward(network: nn.Module, *others: Any) -> torch.Tensor:
        losses.append(original(network, *others))
        if len(losses) == 3:
            network.model.head.weight.grad[0, 0] = math.nan
        return losses[-1]

    monkeypatch.setattr(training.loop, "_backward", backward)
    with pytest.raises(RuntimeError, match=r"the gradient's norm is nan in step 3, epoch 1: lower --lr"):
        train(tiny(tmp_path, clip_grad=clip, save_every=1), QUIET)
    state = torch.load(tmp_path / "last/state.pt")
    assert state["step"] == 2, "the state before it is kept"
    assert all(tensor.isfinite().all() for tensor in state["learner"].values())


def test_a_step_is_queued_before_its_loss_is_read(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To read waits for a GPU, which would then wait for the optimiser's and the average's work to be started."""
    events = []

    def note(owner: Any, name: str) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **named: events.append(name) or original(*args, **named))

    note(torch.optim.AdamW, "step")
    note(training.loop.Average, "update")
    note(torch.Tensor, "tolist")
    note(training.loop, "_check_finite")
    before_step(1, die, monkeypatch)
    with pytest.raises(Killed):
        train(tiny(tmp_path), QUIET)
    assert events[events.index("step") :] == ["step", "update", "tolist", "_check_finite"]


def test_gradients_that_are_not_clipped_stay_untouched() -> None:
    """Even to multiply them by 1 takes as long as their norm."""
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    parameters.append(nn.Parameter(torch.zeros(2)))  # without one
    for parameter, gradient in zip(parameters, gradients, strict=False):
        parameter.grad = gradient
    assert training.loop._gradient_norm(parameters, 0.0) == 5
    assert [gradient._version for gradient in gradients] == [0, 0]
    assert training.loop._gradient_norm(parameters, 2.5) == 5
    assert gradients[1].item() == pytest.approx(2.0)
