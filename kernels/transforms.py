"""Detection of the transforms that an operator with its own gradient does not support."""

import torch
from torch.autograd import forward_ad


def is_transformed() -> bool:
    """Whether forward-mode differentiation or a transform of torch.func is active.

    Our operators would lose the tangents there (zero derivatives) or raise; PyTorch's own operations support both.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
