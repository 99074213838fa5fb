"""Whether PyTorch differentiates in a way that an operator with its own gradient does not support."""

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Under forward-mode differentiation or a transform of torch.func: the operators would drop the tangents there, so
    that derivatives would be zero, or be refused; PyTorch's own operations have them all.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
