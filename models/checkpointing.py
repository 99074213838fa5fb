"""Activation checkpointing (Chen et al., 2016): less memory for more time.

In the forward pass a block keeps only its input; in the backward pass it is computed again, with the same random
numbers. Gradients are the same, and batch statistics are updated once.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """Return block(x), checkpointed if gradients are enabled."""
    if not torch.is_grad_enabled():
        return block(x)
    untraced = torch.compiler.disable(checkpoint)  # here and not above: its imports take a second
    return untraced(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(block)))


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Keep batch norms from updating their statistics inside the block: they have counted the batch before."""
    norms = (module for module in block.modules() if isinstance(module, _BatchNorm))
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, batches in before:
        norm.momentum, norm.num_batches_tracked = 0.0, None if batches is None else batches.clone()
    try:
        yield
    finally:
        for norm, momentum, batches in before:
            norm.momentum, norm.num_batches_tracked = momentum, batches
