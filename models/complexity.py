"""Parameters and multiply-accumulates, counted and not timed."""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(model: nn.Module) -> int:
    """Learned numbers; the running statistics of batch norms are not among them."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, image_size: int, in_channels: int = 3) -> int:
    """Multiply-accumulates of convolutions and matrix products for one image, as papers count "FLOPs".

    Runs the model once, in evaluation mode, on the device it is on; put a large model on "meta" and it costs nothing.
    """
    parameter = next(model.parameters())
    images = torch.empty(1, in_channels, image_size, image_size, dtype=parameter.dtype, device=parameter.device)
    training = model.training
    custom = {torch.ops.widefield.depthwise_conv2d: _depthwise_conv2d_flops}
    try:
        with FlopCounterMode(display=False, custom_mapping=custom) as counter, torch.no_grad():
            model.eval()(images)
    finally:
        model.train(training)
    return counter.get_total_flops() // 2  # it counts a multiplication and an addition as two


def _depthwise_conv2d_flops(input: torch.Size, weight: torch.Size, *_: Any, out_shape: torch.Size, **__: Any) -> int:
    return 2 * out_shape.numel() * weight[2] * weight[3]
