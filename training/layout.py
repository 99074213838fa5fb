"""The memory format that a network computes in. Its weights decide: convolutions convert their inputs to it."""

import torch
from torch import nn

from kernels import DepthwiseConv2d


def memory_format(model: nn.Module, device: torch.device | str) -> torch.memory_format:
    """Contiguous on a GPU for a network with the large-kernel operator, whose kernels there read NCHW and transpose
    anything else (docs/kernels.md); channels_last elsewhere, for cuDNN and oneDNN."""
    ours = any(isinstance(module, DepthwiseConv2d) for module in model.modules())
    return torch.contiguous_format if ours and torch.device(device).type == "cuda" else torch.channels_last


def place(model: nn.Module, device: torch.device | str) -> None:
    """Move `model` to `device`, in the format that suits it there."""
    model.to(device, memory_format=memory_format(model, device))  # type: ignore[call-overload]
