"""Memory formats: an output is laid out as its input is."""

import torch
from torch import Tensor


def dense(input: Tensor) -> Tensor:
    """The input itself where it is contiguous or channels_last, else a contiguous copy."""
    if input.is_contiguous() or input.is_contiguous(memory_format=torch.channels_last):
        return input
    return input.contiguous()


def laid_out_as(output: Tensor, like: Tensor) -> Tensor:
    """`output` itself where it has the strides of `like` (dense), else a copy that has them."""
    return output if output.stride() == like.stride() else torch.empty_like(like).copy_(output)
