"""Parameters and multiply-accumulates, counted and not timed."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from models.modes import evaluating
from models.wrappers import bare_model


def count_parameters(model: nn.Module) -> int:
    """Learned numbers; the running statistics of batch norms are not among them."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, image_size: int, in_channels: int = 3) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image in evaluation mode ("FLOPs" in papers).

    Runs on fake tensors: nothing is computed, whatever the model's device and size.
    """
    model = bare_model(model)  # nn.DataParallel does not use functional_call's weights
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}  # non-persistent buffers too
    with evaluating(model), FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        fake = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in state.items()}
        dtype = next(model.parameters()).dtype
        functional_call(model, fake, torch.empty(1, in_channels, image_size, image_size, dtype=dtype))
    return counter.get_total_flops() // 2  # it counts a multiplication and an addition as two
