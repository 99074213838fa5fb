"""widefield::depthwise_conv2d_pair: the two branches of a training block over one input."""

from typing import Any

import torch
from torch import Tensor

from kernels.depthwise_conv2d import dispatch
from kernels.depthwise_conv2d.layout import dense, laid_out_as
from kernels.depthwise_conv2d.op import autocast_dtype, check_arguments, depthwise_conv2d
from kernels.depthwise_conv2d.precision import get_float32_precision

SCHEMA = "depthwise_conv2d_pair(Tensor input, Tensor weight, Tensor small_weight, bool? fused=None) -> (Tensor, Tensor)"
NAME = "widefield::depthwise_conv2d_pair"

_library = torch.library.Library("widefield", "FRAGMENT")


def depthwise_conv2d_pair(
    input: Tensor, weight: Tensor, small_weight: Tensor, fused: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Two depthwise convolutions of one input, each with its own batch norm to come (RepLKNet, Ding et al., CVPR 2022).

    Args:
        input: [N,C,H,W], as for `depthwise_conv2d`.
        weight: [C,1,Kh,Kw], Kh and Kw odd.
        small_weight: [C,1,Sh,Sw], odd and no larger than the other.
        fused: on a GPU, one kernel that reads the input once, or two calls; None takes the one that the tuner measured
            to be faster (tuning.py), and two calls where it measured nothing.

    Returns:
        ([N,C,H,W], [N,C,H,W]): `depthwise_conv2d(input, weight)` and `depthwise_conv2d(input, small_weight)`.

    Raises:
        ValueError: naming the argument, its value and what is expected.
        RuntimeError: when it is differentiated twice.
    """
    if fused is False:
        return depthwise_conv2d(input, weight), depthwise_conv2d(input, small_weight)
    if dtype := autocast_dtype(input):
        input, weight, small_weight = (t.to(dtype) for t in (input, weight, small_weight))
    _check(input, weight, small_weight)
    return torch.ops.widefield.depthwise_conv2d_pair(input, weight, small_weight, fused)


def _check(input: Tensor, weight: Tensor, small_weight: Tensor) -> None:
    check_arguments(input, weight, None, "none")
    check_arguments(input, small_weight, None, "none")
    if small_weight.shape[2] > weight.shape[2] or small_weight.shape[3] > weight.shape[3]:
        small, large = (f"{t.shape[2]} x {t.shape[3]}" for t in (small_weight, weight))
        raise ValueError(f"small_weight is {small}, weight {large}: the small filter must fit into the other")


def _two_calls(input: Tensor, weight: Tensor, small_weight: Tensor, fused: bool | None = None) -> tuple[Tensor, Tensor]:
    operator = torch.ops.widefield.depthwise_conv2d
    return operator(input, weight), operator(input, small_weight)


def _cuda(input: Tensor, weight: Tensor, small_weight: Tensor, fused: bool | None = None) -> tuple[Tensor, Tensor]:
    size, small_size = ((w.shape[2], w.shape[3]) for w in (weight, small_weight))
    if fused is False or input.numel() == 0 or dispatch.kernel_for(input, size) != "toeplitz":
        return _two_calls(input, weight, small_weight)
    from kernels.depthwise_conv2d import pair_kernel, tuning

    source, precision = dense(input), get_float32_precision()

    def run(way: Any) -> tuple[Tensor, Tensor]:
        if way == "two calls":
            return _two_calls(source, weight, small_weight)
        contiguous = source.contiguous()
        outputs = (torch.empty_like(contiguous), torch.empty_like(contiguous))
        filters = (weight.contiguous(), small_weight.contiguous())
        pair_kernel.launch(contiguous, *filters, *outputs, precision, tile=way)
        return laid_out_as(outputs[0], source), laid_out_as(outputs[1], source)

    with torch.cuda.device(input.device):
        way = tuning.pair_way(source, size, small_size, precision, run)
        if fused:  # with the tile that was measured, else the rule's
            return run(None if way == "two calls" else way)
        return run(way or "two calls")


def _fake(input: Tensor, weight: Tensor, small_weight: Tensor, fused: bool | None = None) -> tuple[Tensor, Tensor]:
    _check(input, weight, small_weight)
    return torch.empty_like(dense(input)), torch.empty_like(dense(input))


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3])


def _backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
    input, *weights = ctx.saved_tensors  # type: ignore[attr-defined]
    operators = torch.ops.widefield
    grad_input = None
    if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
        large, small = (operators.depthwise_conv2d_grad_input(g, w) for g, w in zip(grads, weights, strict=True))
        grad_input = large + small
    grad_weights = [
        operators.depthwise_conv2d_grad_weight(g, input, w.shape[2:]) if needed else None
        for g, w, needed in zip(grads, weights, ctx.needs_input_grad[1:3], strict=True)  # type: ignore[attr-defined]
    ]
    return grad_input, *grad_weights, None


_library.define(SCHEMA)
_library.impl("depthwise_conv2d_pair", _two_calls, "CPU")
_library.impl("depthwise_conv2d_pair", _cuda, "CUDA")
torch.library.register_fake(NAME, _fake)
torch.library.register_autograd(NAME, _backward, setup_context=_setup_context)
