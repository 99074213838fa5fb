"""A whole network whose depthwise layers are computed by the operator or by PyTorch's convolution: is it right?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from kernels.depthwise_conv2d import pytorch

LEAST_KERNEL = 5
WORSE, LEAST_ERROR = 2.0, 1e-3  # allowed: this many times eager's error against float32, or this share of the norm

Convolve = Callable[..., Tensor]
eager = pytorch.activated_convolution


def is_large_depthwise(module: nn.Module) -> bool:
    if not isinstance(module, nn.Conv2d):
        return False
    return module.groups == module.in_channels and module.stride == (1, 1) and module.kernel_size[0] >= LEAST_KERNEL


@contextmanager
def depthwise_by(model: nn.Module, convolve: Convolve) -> Iterator[list[int]]:
    """Compute all depthwise layers from 5 x 5 upwards with `convolve`; yields a list with the number of its calls."""
    calls = [0]

    def counted(*arguments: Any, **named: Any) -> Tensor:
        calls[0] += 1
        return convolve(*arguments, **named)

    def bound(module: nn.Conv2d) -> Callable[[Tensor], Tensor]:
        return lambda x: counted(x, module.weight, module.bias)

    changed = [module for module in model.modules() if is_large_depthwise(module)]
    for module in changed:
        module.forward = bound(module)  # type: ignore[arg-type]
    try:
        with mock.patch("models.layers.depthwise_conv2d", counted):
            yield calls
    finally:
        for module in changed:
            del module.forward


def training_step(
    model: nn.Module, images: Tensor, labels: Tensor, precise: bool = False, optimizer: Optimizer | None = None
) -> list[Tensor]:
    """Forward, backward and the optimiser's step, under autocast unless `precise`.

    Returns the logits and the gradient of the first depthwise filter. Not the loss: with random weights it is the same
    whatever a kernel computes.
    """
    with torch.autocast(images.device.type, torch.bfloat16, enabled=not precise):
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
    loss.backward()
    first = next(module for module in model.modules() if is_large_depthwise(module))
    answers = [logits.detach(), first.weight.grad]
    if optimizer is not None:
        optimizer.step()
    for parameter in model.parameters():
        parameter.grad = None
    return answers


def errors_in_norm(answers: list[Tensor], exact: list[Tensor]) -> list[float]:
    """The distance of each answer from `exact`, relative in norm."""
    return [float((a.float() - e).norm() / e.norm()) for a, e in zip(answers, exact, strict=True)]


def as_right_as_eager(error: float, of_eager: float) -> bool:
    """Whether an error against float32 is within what is allowed beside eager's; not a number is not."""
    return error <= max(WORSE * of_eager, LEAST_ERROR)
