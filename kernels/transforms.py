"""Whether PyTorch differentiates in a way that an operator with a gradient of its own does not know."""

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Under forward-mode differentiation or a transform of torch.func: there the operators would drop the tangents, so
    that derivatives came out as zeros, or be refused; what they are made of in PyTorch has them all.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
