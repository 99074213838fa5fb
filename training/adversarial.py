"""Learners that train on attacks: Fast-AT, a defence, and AdvProp, which raises clean and corruption accuracy."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Subset

from models.modes import evaluating
from training.attacks import PixelModel, losses_and_gradient, pgd, project, random_start
from training.distributed import all_sum
from training.images import Labelled
from training.learners import Supervised
from training.loaders import make_loader
from training.loop import StopTraining
from training.samplers import evenly
from training.settings import SettingsError

WATCHED = 64  # held-out images on which the accuracy under PGD-5 is measured


class FastAT(Supervised):
    """ "Fast is better than free" (Wong et al., ICLR 2020): train on one signed step from a random point of the ball.

    The step is 1.25 epsilon, projected; epsilon in pixel units. Images are normalised with `mean` and `std`. The attack
    is computed in evaluation mode (the authors': in training mode), so that the batch statistics come only from the
    images that are trained on.
    """

    def __init__(
        self, model: nn.Module, criterion: nn.Module, mean: list[float], std: list[float], epsilon: float
    ) -> None:
        super().__init__(model, criterion)
        self.pixel_model = _pixel_view(mean, std)
        self.epsilon = epsilon

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        pixels = self.pixel_model.pixels(images)
        start = random_start(pixels, self.epsilon)
        with evaluating(self.model):
            _, gradient, _ = losses_and_gradient(_through(self.model, self.pixel_model), start, targets)
        adversarial = project(start + 1.25 * self.epsilon * gradient.sign(), pixels, self.epsilon)
        return self.criterion(self.model(self.pixel_model.normalize(adversarial)), targets)


class OverfittingWatch:
    """A check that raises `StopTraining` when the accuracy under PGD-5 falls by more than `drop` below the best so far.

    Training on one step can collapse within an epoch to a model that resists that one step only ("catastrophic
    overfitting"); the checkpoint of the epoch before is then the one to keep. The best so far is a buffer of the
    learner, so that a resumed run stops where the uninterrupted one would. Only models that have learnt something count
    towards it: a model that gives every image the same answer is robust until it learns. The images are the same
    `WATCHED` every time, spread evenly over `images` and divided among the processes, `batch_size` at a time. (The
    authors' code compares with the epoch before, on one batch of the training images.)
    """

    def __init__(
        self, learner: nn.Module, images: Labelled, batch_size: int, epsilon: float, drop: float = 0.2
    ) -> None:
        learner.register_buffer("best_robust", torch.zeros(()))
        self.learner, self.epsilon, self.drop = learner, epsilon, drop
        places = evenly(len(images), WATCHED)
        self.loader = make_loader(Subset(images, places), batch_size, train=False, workers=0)
        targets = torch.tensor([images.targets[place] for place in places])
        self.most_frequent = int(targets.bincount().max()) / len(targets)

    def __call__(self, model: PixelModel, device: str) -> float:
        """Robust accuracy of `model` on the watched images, 0..1."""
        model = model.to(device)
        counts = torch.zeros(3, dtype=torch.int64, device=device)  # images, right when clean, right under the attack
        with evaluating(model):
            for images, targets in self.loader:
                targets = targets.to(device)
                pixels = model.pixels(images.to(device))
                adversarial = pgd(model, pixels, targets, self.epsilon, steps=5)
                with torch.no_grad():
                    right = [(model(x).argmax(1) == targets).sum() for x in (pixels, adversarial)]
                counts += torch.stack([torch.full_like(right[0], len(targets)), *right])
        total, clean, robust = all_sum(counts).tolist()
        self.check(robust / total, learnt=clean / total > self.most_frequent)
        return robust / total

    def check(self, accuracy: float, learnt: bool = True) -> None:
        """Raise `StopTraining` or update the best. `learnt`: the clean accuracy is above a constant answer's."""
        best = float(self.learner.best_robust)  # type: ignore[arg-type]
        if accuracy < best - self.drop:
            raise StopTraining(
                f"accuracy under PGD-5 fell from {best:.1%} to {accuracy:.1%} (catastrophic overfitting); "
                "the epoch before is kept"
            )
        if learnt:
            self.learner.best_robust.fill_(max(best, accuracy))  # type: ignore[operator]


class _Dual(nn.Module):
    """A batch norm that uses its child `auxiliary` while that is in use, and is itself otherwise."""

    auxiliary: nn.Module
    auxiliary_in_use: bool

    def forward(self, x: Tensor) -> Tensor:
        return self.auxiliary(x) if self.auxiliary_in_use else super().forward(x)


@cache
def dual_of(norm: Any) -> Any:
    """Return the subclass of `norm`, a batch norm class of any kind, that has an auxiliary norm."""
    return type(f"Dual{norm.__name__}", (_Dual, norm), {})


def add_auxiliary(model: nn.Module) -> None:
    """Give every batch norm an auxiliary one, in place. The main path keeps its keys and outputs."""
    for module in list(model.modules()):
        if isinstance(module, _BatchNorm):
            auxiliary = deepcopy(module)
            module.__class__ = dual_of(cast(Any, type(module)))
            module.auxiliary = auxiliary
            module.auxiliary_in_use = False  # type: ignore[assignment]


def strip_auxiliary(model: nn.Module) -> nn.Module:
    """Return a copy of `model` with only its main batch norms: the model that is served, re-parameterised and saved."""
    plain = deepcopy(model)
    for module in list(plain.modules()):
        if isinstance(module, _Dual):
            del module.auxiliary, module.auxiliary_in_use
            module.__class__ = type(module).__bases__[1]
    return plain


@contextmanager
def use_auxiliary(model: nn.Module) -> Iterator[None]:
    """Make `model` use its auxiliary batch norms inside the block."""
    norms = [module for module in model.modules() if isinstance(module, _Dual)]
    for norm in norms:
        norm.auxiliary_in_use = True
    try:
        yield
    finally:
        for norm in norms:
            norm.auxiliary_in_use = False


class AdvProp(Supervised):
    """AdvProp (Xie et al., CVPR 2020): clean images on the main batch norms + attacked ones on auxiliary ones.

    The attack is untargeted PGD on the auxiliary path in evaluation mode, `steps` of 1/255 from a random start (the
    paper: epsilon 4/255, 5 steps). It is no defence: only the main path is evaluated and served.
    """

    def __init__(
        self, model: nn.Module, criterion: nn.Module, mean: list[float], std: list[float], epsilon: float
    ) -> None:
        super().__init__(model, criterion)
        if not any(isinstance(module, _BatchNorm) for module in model.modules()):
            raise SettingsError(
                f"--adversarial advprop needs batch norms, {type(model).__name__} has none: choose fast_at or none"
            )
        add_auxiliary(model)
        self.pixel_model = _pixel_view(mean, std)
        self.epsilon = epsilon
        pixel_values = round(255 * epsilon)
        self.steps = 1 if pixel_values <= 1 else pixel_values + 1  # the paper's rule

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        pixels = self.pixel_model.pixels(images)
        attacked = _through(self.model, self.pixel_model)
        with use_auxiliary(self.model):
            with evaluating(self.model):
                adversarial = pgd(attacked, pixels, targets, self.epsilon, self.steps, 1 / 255)
            adversarial_loss = self.criterion(self.model(self.pixel_model.normalize(adversarial)), targets)
        return self.criterion(self.model(images), targets) + adversarial_loss

    def deployed(self, model: nn.Module) -> nn.Module:
        return strip_auxiliary(model)


def _pixel_view(mean: list[float], std: list[float]) -> PixelModel:
    """Return a `PixelModel` that only normalises, so that the model itself stays registered once, in the learner."""
    return PixelModel(nn.Identity(), mean, std)


def _through(model: nn.Module, pixel_model: PixelModel) -> Any:
    return lambda pixels: model(pixel_model.normalize(pixels))
