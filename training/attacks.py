"""Attacks in the L-infinity ball around pixels in [0,1]: FGSM, PGD with restarts, APGD-CE.

All take a model of pixels (`PixelModel` normalises them itself), do not change its mode or its gradients, and need it
in evaluation mode unless the caller intends otherwise. epsilon and step are in pixel units, such as 8/255.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.settings import SettingsError

Attack = Callable[[nn.Module, Tensor, Tensor], Tensor]


class PixelModel(nn.Module):
    """A model of normalised images as a model of pixels: [B,3,S,S] in [0,1] -> logits [B,classes]."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(self.normalize(pixels))

    def normalize(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std

    def pixels(self, images: Tensor) -> Tensor:
        """Return normalised images as pixels in [0,1]."""
        return (images * self.std + self.mean).clamp(0, 1)


def losses_and_gradient(model: nn.Module, pixels: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return cross entropies [B], their gradient with respect to the pixels only [B,3,S,S], and logits [B,classes].

    Under autocast to float16 the gradient is computed in float32: for a confident model float16 would round it, and so
    its sign, to 0.
    """
    device = pixels.device.type
    to_float16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    with torch.autocast(device, enabled=False) if to_float16 else nullcontext(), torch.enable_grad():
        pixels = pixels.detach().requires_grad_(True)
        logits = model(pixels)
        losses = F.cross_entropy(_at_least_float32(logits), targets, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), pixels)
    return losses.detach(), gradient, logits.detach()


def project(adversarial: Tensor, pixels: Tensor, epsilon: float) -> Tensor:
    """Return the nearest point in both the ball around `pixels` and [0,1]."""
    return torch.clamp(adversarial, pixels - epsilon, pixels + epsilon).clamp(0, 1)


def random_start(pixels: Tensor, epsilon: float) -> Tensor:
    return project(pixels + torch.empty_like(pixels).uniform_(-epsilon, epsilon), pixels, epsilon)


def fgsm(model: nn.Module, pixels: Tensor, targets: Tensor, epsilon: float) -> Tensor:
    """One signed step of epsilon (Goodfellow et al., ICLR 2015). [B,3,S,S] -> adversarial [B,3,S,S]."""
    _check(epsilon)
    _, gradient, _ = losses_and_gradient(model, pixels, targets)
    return project(pixels + epsilon * gradient.sign(), pixels, epsilon)


def pgd(
    model: nn.Module,
    pixels: Tensor,
    targets: Tensor,
    epsilon: float,
    steps: int = 20,
    step: float | None = None,
    restarts: int = 1,
    from_random: bool = True,
) -> Tensor:
    """Projected gradient ascent (Madry et al., ICLR 2018); `step` None: 2.5 epsilon / steps.

    Each image keeps the result of a restart that misclassifies it, if there is one, else that of the highest loss.
    Raises `SettingsError` for impossible values.
    """
    _check(epsilon, steps, restarts)
    size = 2.5 * epsilon / steps if step is None else step
    if not size >= 0:  # else the loss would fall or stay: any model would look robust
        raise SettingsError(f"step {size}: pixel units, at least 0")

    def run() -> Tensor:
        adversarial = random_start(pixels, epsilon) if from_random else pixels
        for _ in range(steps):
            _, gradient, _ = losses_and_gradient(model, adversarial, targets)
            adversarial = project(adversarial + size * gradient.sign(), pixels, epsilon)
        return adversarial

    return _strongest(model, targets, run, restarts)


def apgd_ce(
    model: nn.Module, pixels: Tensor, targets: Tensor, epsilon: float, steps: int = 100, restarts: int = 1
) -> Tensor:
    """Auto-PGD on the cross entropy (Croce & Hein, ICML 2020): no step size to choose.

    Steps of 2 epsilon with momentum 0.75 are halved, image by image, at checkpoints where fewer than 75 % of the steps
    raised the loss, or where neither the step nor the best loss has changed since the last one; then the image
    continues from its best point. As in the authors' code, the result for an image is the point of the highest loss
    among the misclassified ones or, if there are none, among all. Restarts as in `pgd`.
    """
    _check(epsilon, steps, restarts)
    return _strongest(model, targets, lambda: _apgd_run(model, pixels, targets, epsilon, steps), restarts)


def apgd_checkpoints(steps: int) -> list[int]:
    """Steps at which APGD may halve its step: ceil(p_j * steps), p_1 = 0.22, each gap 0.03 shorter, 0.06 the least."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return sorted({math.ceil(round(share * steps, 6)) for share in shares[1:] if share <= 1})


def _apgd_run(model: nn.Module, pixels: Tensor, targets: Tensor, epsilon: float, steps: int) -> Tensor:
    def column(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1)

    size = torch.full((len(pixels),), 2 * epsilon, device=pixels.device)  # [B]
    x = random_start(pixels, epsilon)
    loss, gradient, logits = losses_and_gradient(model, x, targets)
    best, best_loss, best_gradient = x.clone(), loss.clone(), gradient.clone()
    wrong, wrong_loss = x, _loss_where_wrong(loss, logits, targets)
    previous, raised = x, torch.zeros_like(loss)
    size_then, best_then = size.clone(), best_loss.clone()
    checkpoints, last_checkpoint = apgd_checkpoints(steps), 0
    for k in range(1, steps + 1):
        z = project(x + column(size) * gradient.sign(), pixels, epsilon)
        momentum = 0.75 if k > 1 else 1.0  # the first step is a plain one
        moved = project(x + momentum * (z - x) + (1 - momentum) * (x - previous), pixels, epsilon)
        previous, x, loss_before = x, moved, loss
        loss, gradient, logits = losses_and_gradient(model, x, targets)
        now_wrong_loss = _loss_where_wrong(loss, logits, targets)
        wrong = torch.where(column(now_wrong_loss > wrong_loss), x, wrong)
        wrong_loss = torch.maximum(wrong_loss, now_wrong_loss)
        raised += (loss > loss_before).to(raised)
        better = loss > best_loss
        best, best_gradient = (torch.where(column(better), a, b) for a, b in ((x, best), (gradient, best_gradient)))
        best_loss = torch.where(better, loss, best_loss)
        if k in checkpoints:
            stalled = (size == size_then) & (best_loss == best_then)
            halve = (raised < 0.75 * (k - last_checkpoint)) | stalled
            size_then, best_then = size.clone(), best_loss.clone()
            size = torch.where(halve, size / 2, size)
            x, gradient = (torch.where(column(halve), a, b) for a, b in ((best, x), (best_gradient, gradient)))
            loss = torch.where(halve, best_loss, loss)
            raised.zero_()
            last_checkpoint = k
    return torch.where(column(wrong_loss > -torch.inf), wrong, best)


def _loss_where_wrong(losses: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the losses [B], -inf where the answer is right."""
    return torch.where(logits.argmax(1) != targets, losses, -torch.inf)


def _strongest(model: nn.Module, targets: Tensor, run: Callable[[], Tensor], restarts: int) -> Tensor:
    """Return, for each image, the strongest of `restarts` runs; a single run is not compared."""
    best = run()
    if restarts == 1:
        return best
    best_strength = _strength(model, best, targets)
    for _ in range(restarts - 1):
        adversarial = run()
        strength = _strength(model, adversarial, targets)
        stronger = strength > best_strength
        best = torch.where(stronger.view(-1, 1, 1, 1), adversarial, best)
        best_strength = torch.where(stronger, strength, best_strength)
    return best


@torch.no_grad()
def _strength(model: nn.Module, adversarial: Tensor, targets: Tensor) -> Tensor:
    """Return the cross entropy [B], infinite where the answer is wrong."""
    logits = _at_least_float32(model(adversarial))
    losses = F.cross_entropy(logits, targets, reduction="none")
    return torch.where(logits.argmax(1) != targets, torch.inf, losses)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check(epsilon: float, steps: int = 1, restarts: int = 1) -> None:
    if not 0 <= epsilon <= 1:
        raise SettingsError(f"epsilon {epsilon}: pixel units are 0 to 1, such as 8/255")
    if steps < 1 or restarts < 1:
        raise SettingsError(f"steps {steps}, restarts {restarts}: both must be at least 1")
