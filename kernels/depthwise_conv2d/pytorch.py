"""PyTorch's own convolution: used if no kernel of ours applies, or if the tuner chooses it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.layout import laid_out_as

# On a GPU contiguous memory takes PyTorch's own kernel from 7 x 7 on, channels_last takes cuDNN's.
MEMORY_FORMATS = {"pytorch": torch.contiguous_format, "pytorch channels_last": torch.channels_last}
_settings = threading.Lock()  # for `as_ours`, whose settings are the process's


def algorithm_for(input: Tensor) -> str:
    """Return the key of `MEMORY_FORMATS` for the format of `input`: channels_last unless it is contiguous."""
    return "pytorch" if input.is_contiguous() else "pytorch channels_last"


def activate(output: Tensor, activation: str) -> Tensor:
    return {"none": lambda t: t, "relu": F.relu, "gelu": F.gelu}[activation](output)


def convolution(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    return F.conv2d(input, weight, bias, padding=padding, groups=input.shape[1])


def activated_convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"
) -> Tensor:
    return activate(convolution(input, weight, bias), activation)


def convolution_backward(grad: Tensor, input: Tensor, weight: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
    channels, _, kernel_height, kernel_width = weight.shape
    padding = [kernel_height // 2, kernel_width // 2]
    return torch.ops.aten.convolution_backward(
        grad, input, weight, None, [1, 1], padding, [1, 1], False, [0, 0], channels, mask
    )


def grad_weight(grad: Tensor, input: Tensor, kernel_size: tuple[int, ...]) -> Tensor:
    """Return the filter's gradient [C,1,Kh,Kw], contiguous, from `grad` and `input` [N,C,H,W]."""
    if input.device.type == "cpu" and input.shape[1] == 1 and len(input):  # oneDNN's writes out of bounds
        padding = (kernel_size[0] // 2, kernel_size[1] // 2)
        return F.conv2d(input.transpose(0, 1), grad.transpose(0, 1), padding=padding)  # the images are the channels
    result = input.new_empty(input.shape[1], 1, *kernel_size)
    return laid_out_as(convolution_backward(grad, input, result, [False, True, False])[1], result)


@contextmanager
def as_ours(dtype: torch.dtype, precision: str) -> Iterator[None]:
    """Make cuDNN deterministic for a block, and its float32 products IEEE unless `precision` is "tf32"."""
    cudnn: Any = torch.backends.cudnn
    wanted: list[tuple[Any, str, Any]] = [(cudnn, "deterministic", True)]
    if dtype == torch.float32:  # not allow_tf32, which cannot be read once the newer setting was written
        wanted.append((cudnn.conv, "fp32_precision", "tf32" if precision == "tf32" else "ieee"))
    with _settings:
        # Only what differs is written: a setting that was written once is no longer inherited.
        wanted = [(where, name, value) for where, name, value in wanted if getattr(where, name) != value]
        before = [(where, name, getattr(where, name)) for where, name, _ in wanted]
        try:
            for setting in wanted:
                setattr(*setting)
            yield
        finally:
            for setting in before:
                setattr(*setting)


def run_forward(
    algorithm: str, input: Tensor, weight: Tensor, bias: Tensor | None, activation: str, precision: str
) -> Tensor:
    """Compute in the memory format of `algorithm`, a key of `MEMORY_FORMATS`; the result has the input's format."""
    source = input.contiguous(memory_format=MEMORY_FORMATS[algorithm])
    with as_ours(input.dtype, precision):
        output = activated_convolution(source, weight, bias, activation)
    return laid_out_as(output, input)


def run_grad_weight(
    algorithm: str, grad: Tensor, input: Tensor, kernel_size: tuple[int, ...], precision: str
) -> Tensor:
    grad, input = (t.contiguous(memory_format=MEMORY_FORMATS[algorithm]) for t in (grad, input))
    with as_ours(input.dtype, precision):
        return grad_weight(grad, input, kernel_size)
