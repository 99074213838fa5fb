"""The same short training with the operators, with their references and with PyTorch's own: are the losses the same?

Every depthwise convolution of the large-kernel blocks is computed by PyTorch's, by the operator (what training has) or
by its reference; in pre-training the masked-patch loss is the operator's or the reference's.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from torch import Tensor, nn

from kernels import DepthwiseConv2d, masked_patch_loss
from kernels.depthwise_conv2d.reference import depthwise_conv2d_reference
from kernels.masked_patch_loss.reference import masked_patch_loss_reference
from models import MaskedPretrainer, ModelConfig
from models.layers import ReparamLargeKernelConv
from training import finetune, pretrain
from training.logs import RunLog


class ReferenceConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d_reference(x, self.weight, None, "none")


CONVOLUTIONS: dict[str, type[nn.Conv2d]] = {
    "pytorch": nn.Conv2d,
    "operator": DepthwiseConv2d,
    "reference": ReferenceConv2d,
}


def replace_convolutions(model: nn.Module, kind: type[nn.Conv2d]) -> int:
    """Compute the large-kernel blocks' depthwise convolutions by `kind`, in place; returns how many there are."""
    branches = [
        branch.conv
        for block in model.modules()
        if isinstance(block, ReparamLargeKernelConv)
        for branch in (block.lkb_origin, block.small_conv)
        if branch is not None
    ]
    for convolution in branches:
        convolution.__class__ = kind
    return len(branches)


@contextmanager
def computed_by(name: str, double: bool) -> Iterator[list[float]]:
    """The training code inside uses the implementation `name`, in float64 if `double`; gives the loss of each step."""
    losses: list[float] = []
    record, finetuned, pretrained = RunLog.step, finetune.make_model, pretrain.make_model

    def change(model: nn.Module) -> None:
        if not replace_convolutions(model, CONVOLUTIONS[name]):
            raise ValueError(f"{type(model).__name__} has no large-kernel block to compute by {name}")
        if double:
            model.double().register_forward_pre_hook(_to_double)

    def make_classifier(config: finetune.Config, labels: list[str]) -> tuple[nn.Module, ModelConfig]:
        model, model_config = finetuned(config, labels)
        change(model)
        return model, model_config

    def make_masked(config: pretrain.Config) -> tuple[MaskedPretrainer, ModelConfig]:
        model, model_config = pretrained(config)
        change(model)
        return model, model_config

    def step(log: RunLog, epoch: int, number: int, images: int, values: dict[str, float]) -> None:
        losses.append(values["loss"])
        record(log, epoch, number, images, values)

    loss: Callable[..., Tensor] = masked_patch_loss_reference if name == "reference" else masked_patch_loss
    with (
        patch.object(finetune, "make_model", make_classifier),
        patch.object(pretrain, "make_model", make_masked),
        patch("models.masked.masked_patch_loss", loss),
        patch.object(RunLog, "step", step),
    ):
        yield losses


def _to_double(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (inputs[0].double(), *inputs[1:])


def losses_of(task: str, name: str, data: Path, output: Path, seed: int, double: bool, **settings: Any) -> list[float]:
    """The loss of each step of one training."""
    alone: dict[str, Any] = {"workers": 0, "threads": 1, "device": "cpu", "resume": "never", **settings}
    shutil.rmtree(output, ignore_errors=True)
    torch.manual_seed(seed)
    with computed_by(name, double) as losses:
        if task == "finetune":
            config = replace(finetune.PRESETS["digits"], data=data, output=output, seed=seed)
            finetune.train(replace(config, **alone), Console(quiet=True))
        else:
            masked = replace(pretrain.PRESETS["digits"], data=data, output=output, seed=seed)
            pretrain.train(replace(masked, **alone), Console(quiet=True))
    return losses


def compare(data: Path, folder: Path, seed: int, task: str, double: bool, **settings: Any) -> dict[str, Any]:
    """{"losses": {implementation: [loss of each step]}, "largest": {implementation: difference from the reference}}."""
    losses = {name: losses_of(task, name, data, folder / name, seed, double, **settings) for name in CONVOLUTIONS}
    largest = {
        name: max(abs(a - b) for a, b in zip(values, losses["reference"], strict=True))
        for name, values in losses.items()
        if name != "reference"
    }
    return {"losses": losses, "largest": largest}
