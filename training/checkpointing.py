"""Activation checkpointing (Chen et al., 2016): less memory for more time.

In the forward pass a block keeps its input alone; in the backward pass it is computed again, with the same random
numbers. Gradients are the same, and batch statistics are counted once.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from models import RepLKNet
from training.settings import LoopConfig, SettingsError


class _Checkpointed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        block = super().forward
        if not torch.is_grad_enabled():
            return block(x)
        return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(self)))


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Inside, batch norms do not count the batch, which they have counted before."""
    norms = (module for module in block.modules() if isinstance(module, _BatchNorm))
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, batches in before:
        norm.momentum, norm.num_batches_tracked = 0.0, None if batches is None else batches.clone()
    try:
        yield
    finally:
        for norm, momentum, batches in before:
            norm.momentum, norm.num_batches_tracked = momentum, batches


@cache
def _checkpointed(block: Any) -> Any:
    return type(f"Checkpointed{block.__name__}", (_Checkpointed, block), {})


def checkpoint_blocks(model: nn.Module, config: LoopConfig) -> None:
    """Every block of a RepLKNet, in place; keys and answers stay. Raises `SettingsError` for what it does not go with.

    AdvProp's choice of norms and a sparse mask are a context around the forward pass: it is gone when the backward pass
    computes a block again, so both are refused.
    """
    if not isinstance(model, RepLKNet):
        raise SettingsError(f"--grad-checkpointing: it is for RepLKNets, not for {type(model).__name__}; leave it out")
    for name, value in (("compile", True), ("head_only", True), ("adversarial", "advprop"), ("mask_mode", "sparse")):
        if getattr(config, name, None) == value:
            option = f"--{name.replace('_', '-')}" + (f" {value}" if isinstance(value, str) else "")
            raise SettingsError(f"--grad-checkpointing does not go with {option}: leave one of them out")
    for stage in model.stages:
        for block in cast(Any, stage).blocks:
            block.__class__ = _checkpointed(cast(Any, type(block)))
