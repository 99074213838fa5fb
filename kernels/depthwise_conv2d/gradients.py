"""The operators that compute the gradients of widefield::depthwise_conv2d, so that torch.compile sees them as such.

Autocast, which may be enabled for the backward pass only, does not affect them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import native
from kernels.depthwise_conv2d import dispatch, pytorch
from kernels.layout import contiguous_or_channels_last, laid_out_as

BEFORE_ACTIVATION_SCHEMA = "depthwise_conv2d_before_activation(Tensor input, Tensor weight, Tensor? bias) -> Tensor"
GRAD_INPUT_SCHEMA = "depthwise_conv2d_grad_input(Tensor grad_output, Tensor weight) -> Tensor"
GRAD_WEIGHT_SCHEMA = "depthwise_conv2d_grad_weight(Tensor grad_output, Tensor input, int[2] kernel_size) -> Tensor"

AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}

_library = torch.library.Library("widefield", "FRAGMENT")


def _before_activation_cpu(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.widefield.depthwise_conv2d(input, weight, bias)


def _before_activation_cuda(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return dispatch.forward_cuda(input, weight, bias)


def _before_activation_fake(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(contiguous_or_channels_last(input))


def _grad_input_layout(grad: Tensor) -> Tensor:
    """Allocate the result: channels_last on the CPU, which computes in it, else as a forward pass returns it."""
    if grad.device.type == "cpu":
        return torch.empty_like(grad, memory_format=torch.channels_last)
    return torch.empty_like(contiguous_or_channels_last(grad))


def _grad_input_cpu(grad: Tensor, weight: Tensor) -> Tensor:
    """The forward pass with the filter turned by 180 degrees."""
    source = grad.contiguous(memory_format=torch.channels_last)
    result = _before_activation_cpu(source, weight.flip((2, 3)), None)
    return laid_out_as(result, _grad_input_layout(grad))


def _grad_input_cuda(grad: Tensor, weight: Tensor) -> Tensor:
    return dispatch.forward_cuda(grad, weight, None, flip=True)


def _grad_weight_cpu(grad: Tensor, input: Tensor, kernel_size: list[int]) -> Tensor:
    grad, input = (t.contiguous(memory_format=torch.channels_last) for t in (grad, input))
    if _has_kernel(input):
        return torch.ops.widefield.depthwise_conv2d_grad_weight_kernel(grad, input, *kernel_size)
    if (dtype := input.dtype) == torch.float16:  # PyTorch would sum in float16
        grad, input = grad.float(), input.float()
    return pytorch.grad_weight(grad, input, tuple(kernel_size)).to(dtype)


def _has_kernel(input: Tensor) -> bool:
    """Whether the native library is loaded and has a kernel for this processor, dtype and channels (16 n)."""
    return (
        native.is_loaded()
        and torch.ops.widefield.has_cpu_kernels()
        and input.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and input.shape[1] % 16 == 0
        and input.numel() > 0
    )


def _grad_weight_cuda(grad: Tensor, input: Tensor, kernel_size: list[int]) -> Tensor:
    return dispatch.grad_weight_cuda(grad, input, (kernel_size[0], kernel_size[1]))


def _grad_input_fake(grad: Tensor, weight: Tensor) -> Tensor:
    return _grad_input_layout(grad)


def _grad_weight_fake(grad: Tensor, input: Tensor, kernel_size: list[int]) -> Tensor:
    return input.new_empty(input.shape[1], 1, *kernel_size)


def without_autocast(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `operator` with autocast disabled: PyTorch's convolution, which may compute it, would round to 16 bits."""

    def call(grad: Tensor, *rest: object) -> Tensor:
        with torch.autocast(grad.device.type, enabled=False):
            return operator(grad, *rest)

    return call


def refuse_double_backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> None:
    raise RuntimeError(
        "depthwise_conv2d cannot be differentiated twice. For second derivatives use "
        "torch.nn.functional.conv2d(input, weight, padding=(Kh // 2, Kw // 2), groups=C)"
    )


for _schema, _cpu, _cuda, _fake in (
    (BEFORE_ACTIVATION_SCHEMA, _before_activation_cpu, _before_activation_cuda, _before_activation_fake),
    (GRAD_INPUT_SCHEMA, _grad_input_cpu, _grad_input_cuda, _grad_input_fake),
    (GRAD_WEIGHT_SCHEMA, _grad_weight_cpu, _grad_weight_cuda, _grad_weight_fake),
):
    _name = _schema.split("(")[0]
    _library.define(_schema)
    _library.impl(_name, _cpu, "CPU")
    _library.impl(_name, _cuda, "CUDA")
    for _key in AUTOCAST.values():
        _library.impl(_name, without_autocast(getattr(torch.ops.widefield, _name)), _key)
    torch.library.register_fake(f"widefield::{_name}", _fake)
    torch.library.register_autograd(f"widefield::{_name}", refuse_double_backward)
