"""Memory formats: an output has the one of its input."""

import torch
from torch import Tensor


def contiguous_or_channels_last(input: Tensor) -> Tensor:
    """Return `input` itself if it is contiguous or channels_last, else a contiguous copy."""
    if input.is_contiguous() or input.is_contiguous(memory_format=torch.channels_last):
        return input
    return input.contiguous()


def laid_out_as(output: Tensor, like: Tensor) -> Tensor:
    """Return `output` itself if it has the strides of `like`, else a copy with them (`like` has no gaps)."""
    return output if output.stride() == like.stride() else torch.empty_like(like).copy_(output)
