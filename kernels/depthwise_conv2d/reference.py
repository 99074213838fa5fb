"""The specification of the operation in plain PyTorch; accurate in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise_conv2d_reference(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """input [N,C,H,W], weight [C,1,Kh,Kw], bias [C] or None -> [N,C,H,W], summed tap by tap."""
    channels, _, kernel_height, kernel_width = weight.shape
    height, width = input.shape[2:]
    pad_y, pad_x = kernel_height // 2, kernel_width // 2
    padded = F.pad(input, (pad_x, pad_x, pad_y, pad_y))  # [N,C,H+Kh-1,W+Kw-1]
    output = torch.zeros_like(input) if bias is None else bias.view(1, channels, 1, 1).expand_as(input).clone()
    for y in range(kernel_height):
        for x in range(kernel_width):
            output += padded[:, :, y : y + height, x : x + width] * weight[:, 0, y, x].view(1, channels, 1, 1)
    return {"none": lambda t: t, "relu": torch.relu, "gelu": F.gelu}[activation](output)
