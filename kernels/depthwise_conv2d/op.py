"""widefield::depthwise_conv2d: its schema, checks, dispatch and gradients."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from kernels.arguments import check_tensors
from kernels.depthwise_conv2d import dispatch, gradients, pytorch
from kernels.layout import contiguous_or_channels_last, laid_out_as
from kernels.native import is_loaded, load_native_library, warn_if_missing
from kernels.transforms import is_transformed

SCHEMA = "depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias=None, str activation='none') -> Tensor"
NAME = "widefield::depthwise_conv2d"
ACTIVATIONS = ("none", "relu", "gelu")
DTYPES = (*dispatch.TRITON_DTYPES, torch.float64)

_library = torch.library.Library("widefield", "FRAGMENT")


def depthwise_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """Depthwise convolution, stride 1, zero padding Kh//2 and Kw//2, then bias and activation.

    Args:
        input: [N,C,H,W], contiguous or channels_last (anything else is copied); float32, float16, bfloat16, float64.
        weight: [C,1,Kh,Kw] of the input's dtype and device, Kh and Kw odd.
        bias: [C] or None.
        activation: "none", "relu" or "gelu" (the exact one, by erf).

    Returns:
        [N,C,H,W], the input's dtype and memory format. Sums are accumulated in float32 (float64 for float64).
        Under autocast the arguments are cast as convolution's are. Under torch.func's transforms and forward-mode
        differentiation PyTorch's convolution is used, which has derivatives of every order.

    Raises:
        ValueError: naming the argument, its value and what is expected.
        RuntimeError: when it is differentiated twice.
    """
    if not torch.jit.is_scripting():  # the native library makes the checks too
        if has_torch_function_variadic(input, weight, bias):  # such as torch.fx's proxies
            arguments = (input, weight, bias, activation)
            return handle_torch_function(depthwise_conv2d, (input, weight, bias), *arguments)
        if not torch.jit.is_tracing():  # a trace would bake the comparisons in
            check_tensors(input=input, weight=weight)
            if bias is not None:
                check_tensors(bias=bias)
            check_arguments(input, weight, bias, activation)
        if is_transformed():
            return _transformed(input, weight, bias, activation)
    return torch.ops.widefield.depthwise_conv2d(input, weight, bias, activation)


def computed_dtype(t: Tensor) -> torch.dtype:
    """Return the dtype in which `t` is convolved: autocast's, if enabled, for floating-point types except float64."""
    device = t.device.type
    narrow = t.dtype.is_floating_point and t.dtype != torch.float64
    if device in gradients.AUTOCAST and narrow and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return t.dtype


def check_arguments(input: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> None:
    """Raise `ValueError` for arguments that the operation is not defined on."""
    if input.dim() != 4:
        raise ValueError(f"input has shape {list(input.shape)}: [N,C,H,W] is expected")
    channels = input.shape[1]
    if channels == 0:
        raise ValueError(f"input has shape {list(input.shape)}: at least one channel is expected")
    if input.shape[2] == 0 or input.shape[3] == 0:
        raise ValueError(f"input has shape {list(input.shape)}: images of at least one pixel are expected")
    if weight.dim() != 4 or weight.shape[0] != channels or weight.shape[1] != 1:
        raise ValueError(f"weight has shape {list(weight.shape)}: [{channels},1,Kh,Kw] is expected")
    if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        raise ValueError(f"the kernel is {weight.shape[2]} x {weight.shape[3]}: both sides must be odd")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias has shape {list(bias.shape)}: [{channels}] is expected")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}")
    dtype = computed_dtype(input)
    for name, other in (("weight", weight), ("bias", bias)):
        if other is None:
            continue
        if computed_dtype(other) != dtype or other.device != input.device:
            raise ValueError(f"{name} is {other.dtype} on {other.device}, input is {input.dtype} on {input.device}")
    if dtype not in DTYPES:
        raise ValueError(f"input is {input.dtype}: float32, float16, bfloat16 or float64 is expected")


def _cpu(input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """Convolve in channels_last with oneDNN: large layers take 25 to 74 times as long in NCHW."""
    check_arguments(input, weight, bias, activation)
    warn_if_missing()
    source = contiguous_or_channels_last(input)
    channels_last = source.contiguous(memory_format=torch.channels_last)
    # oneDNN has no float16: PyTorch's own kernel for it is inexact and takes 15 to 50 times as long as in float32.
    exact = torch.float32 if input.dtype == torch.float16 else input.dtype
    shift = None if bias is None else bias.to(exact)
    convolved = pytorch.convolution(channels_last.to(exact), weight.to(exact), shift)
    return laid_out_as(pytorch.activate(convolved, activation).to(input.dtype), source)


def _cuda(input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    check_arguments(input, weight, bias, activation)  # scripted and traced code comes here unchecked
    return dispatch.forward_cuda(input, weight, bias, activation)


def _transformed(input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """PyTorch's own operations, which have derivatives of every order."""
    return pytorch.activated_convolution(input, weight, bias, activation)


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    tensors = [None if t is None else t.to(computed_dtype(t)) for t in (input, weight, bias)]
    with torch.autocast(input.device.type, enabled=False):
        return torch.ops.widefield.depthwise_conv2d(*tensors, activation)


def _fake(input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    check_arguments(input, weight, bias, activation)
    return torch.empty_like(contiguous_or_channels_last(input))


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    input, weight, bias, activation = inputs
    # ReLU's gradient is in the sign of the output; GELU's needs its argument, which backward computes again.
    kept: Any = {"relu": output, "gelu": bias}.get(activation)
    ctx.save_for_backward(input, weight, kept)
    ctx.activation, ctx.has_bias = activation, bias is not None  # type: ignore[attr-defined]


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, kept = ctx.saved_tensors  # type: ignore[attr-defined]
    activation, has_bias = ctx.activation, ctx.has_bias  # type: ignore[attr-defined]
    if activation == "relu":
        grad = torch.where(kept <= 0, 0, grad)  # also where the output is NaN, as in PyTorch
    elif activation == "gelu":
        before = torch.ops.widefield.depthwise_conv2d_before_activation(input, weight, kept)
        grad = torch.ops.aten.gelu_backward(grad, before)
    grad_input, grad_weight, grad_bias = None, None, None
    if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
        grad_input = torch.ops.widefield.depthwise_conv2d_grad_input(grad, weight)
    if ctx.needs_input_grad[1]:  # type: ignore[attr-defined]
        grad_weight = torch.ops.widefield.depthwise_conv2d_grad_weight(grad, input, weight.shape[2:])
        if weight.is_contiguous():  # DistributedDataParallel compares the stride of the axis of size 1 too
            grad_weight = grad_weight.as_strided(weight.shape, weight.stride())
    if has_bias and ctx.needs_input_grad[2]:  # type: ignore[attr-defined]
        grad_bias = grad.sum((0, 2, 3))  # accumulated in float32
    return grad_input, grad_weight, grad_bias, None


def _register() -> None:
    """Register the operator. The native library, if loaded, has the schema and the CPU; CUDA's is always Python's."""
    if not is_loaded() and not load_native_library():  # loading a second library aborts the process
        _library.define(SCHEMA)
        _library.impl("depthwise_conv2d", _cpu, "CPU")
        _library.impl("depthwise_conv2d", _cuda, "CUDA")
    else:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"(?s).*Overriding a previously registered kernel.*depthwise_conv2d\(")
            _library.impl("depthwise_conv2d", _cuda, "CUDA", allow_override=True)
    for key in gradients.AUTOCAST.values():
        _library.impl("depthwise_conv2d", _autocast, key)
    _library.impl("depthwise_conv2d", _transformed, "FuncTorchDynamicLayerFrontMode")
    torch.library.register_fake(NAME, _fake)
    torch.library.register_autograd(NAME, _backward, setup_context=_setup_context)


_register()
