"""widefield::depthwise_conv2d_grad_input and _grad_weight: operators of their own, so that torch.compile sees them."""

import torch
from torch import Tensor

from kernels.depthwise_conv2d import pytorch
from kernels.layout import dense

GRAD_INPUT_SCHEMA = "depthwise_conv2d_grad_input(Tensor grad_output, Tensor weight) -> Tensor"
GRAD_WEIGHT_SCHEMA = "depthwise_conv2d_grad_weight(Tensor grad_output, Tensor input, int[2] kernel_size) -> Tensor"

LEAST_TAPS = 9  # with fewer the native library leaves the forward pass to oneDNN

_library = torch.library.Library("widefield", "FRAGMENT")


def _grad_input_layout(grad: Tensor) -> Tensor:
    """Room for the result: channels_last on the CPU, where it is computed so, else as a forward pass returns it."""
    if grad.device.type == "cpu":
        return torch.empty_like(grad, memory_format=torch.channels_last)
    return torch.empty_like(dense(grad))


def _grad_input_cpu(grad: Tensor, weight: Tensor) -> Tensor:
    source = grad.contiguous(memory_format=torch.channels_last)
    if _has_kernel(source) and weight[0].numel() >= LEAST_TAPS:  # the forward pass, the filter turned by 180 degrees
        result = torch.ops.widefield.depthwise_conv2d(source, weight.flip((2, 3)))
    else:  # of the input only the shape counts
        wide, exact = (_summed_in_float32(t) for t in (source, weight))
        result = pytorch.convolution_backward(wide, wide, exact, [True, False, False])[0].to(grad.dtype)
    expected = _grad_input_layout(grad)
    return result if result.stride() == expected.stride() else expected.copy_(result)


def _grad_input_cuda(grad: Tensor, weight: Tensor) -> Tensor:
    """The forward pass with the filter turned by 180 degrees."""
    from kernels.depthwise_conv2d import dispatch

    return dispatch.forward_cuda(grad, weight, None, flip=True)


def _grad_weight_cpu(grad: Tensor, input: Tensor, kernel_size: list[int]) -> Tensor:
    grad, input = (t.contiguous(memory_format=torch.channels_last) for t in (grad, input))
    if _has_kernel(input):
        return torch.ops.widefield.depthwise_conv2d_grad_weight_kernel(grad, input, *kernel_size)
    grad, wide = (_summed_in_float32(t) for t in (grad, input))
    return pytorch.grad_weight(grad, wide, tuple(kernel_size)).to(input.dtype)


def _summed_in_float32(t: Tensor) -> Tensor:
    """PyTorch's gradients of float16 are summed in float16 on the CPU."""
    return t.float() if t.dtype == torch.float16 else t


def _has_kernel(input: Tensor) -> bool:
    """With the native library, a processor that it has kernels for, and whole blocks of 16 channels."""
    return (
        hasattr(torch.ops.widefield, "has_cpu_kernels")
        and torch.ops.widefield.has_cpu_kernels()
        and input.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and input.shape[1] % 16 == 0
        and input.numel() > 0
    )


def _grad_weight_cuda(grad: Tensor, input: Tensor, kernel_size: list[int]) -> Tensor:
    from kernels.depthwise_conv2d import dispatch

    return dispatch.grad_weight_cuda(grad, input, (kernel_size[0], kernel_size[1]))


def _grad_input_fake(grad: Tensor, weight: Tensor) -> Tensor:
    return _grad_input_layout(grad)


def _grad_weight_fake(grad: Tensor, input: Tensor, kernel_size: list[int]) -> Tensor:
    return input.new_empty(input.shape[1], 1, *kernel_size)


def refuse_double_backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> None:
    raise RuntimeError(
        "depthwise_conv2d cannot be differentiated twice. For second derivatives use "
        "torch.nn.functional.conv2d(input, weight, padding=(Kh // 2, Kw // 2), groups=C)"
    )


for _schema, _cpu, _cuda, _fake in (
    (GRAD_INPUT_SCHEMA, _grad_input_cpu, _grad_input_cuda, _grad_input_fake),
    (GRAD_WEIGHT_SCHEMA, _grad_weight_cpu, _grad_weight_cuda, _grad_weight_fake),
):
    _name = _schema.split("(")[0]
    _library.define(_schema)
    _library.impl(_name, _cpu, "CPU")
    _library.impl(_name, _cuda, "CUDA")
    torch.library.register_fake(f"widefield::{_name}", _fake)
    torch.library.register_autograd(f"widefield::{_name}", refuse_double_backward)
