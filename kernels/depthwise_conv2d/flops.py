"""FLOP formulas for torch.utils.flop_counter: a multiplication and an addition for each tap and output."""

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula


@register_flop_formula([torch.ops.widefield.depthwise_conv2d, torch.ops.widefield.depthwise_conv2d_before_activation])
def forward_flops(input: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * torch.Size(input).numel() * weight[2] * weight[3]


@register_flop_formula(torch.ops.widefield.depthwise_conv2d_grad_input)
def grad_input_flops(grad: torch.Size, weight: torch.Size, **_: Any) -> int:
    return 2 * torch.Size(grad).numel() * weight[2] * weight[3]


@register_flop_formula(torch.ops.widefield.depthwise_conv2d_grad_weight)
def grad_weight_flops(grad: torch.Size, input: torch.Size, kernel_size: list[int], **_: Any) -> int:
    return 2 * torch.Size(grad).numel() * kernel_size[0] * kernel_size[1]
