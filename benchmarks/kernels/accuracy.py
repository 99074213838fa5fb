"""The float64 answer of a layer and how far an implementation may be from it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.kernels.layers import PASSES

EPS = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}


@dataclass(frozen=True)
class Tensors:
    """One set of inputs: input and grad [N,C,H,W], weight [C,1,K,K]."""

    input: Tensor
    weight: Tensor
    grad: Tensor


def passes(tensors: Tensors) -> dict[str, Tensor]:
    """Compute forward, grad_input and grad_weight with PyTorch's convolution, in the type of `tensors`."""
    input, weight = (t.detach().requires_grad_() for t in (tensors.input, tensors.weight))
    output = F.conv2d(input, weight, padding=weight.shape[2] // 2, groups=weight.shape[0])
    gradients = torch.autograd.grad(output, (input, weight), tensors.grad)
    return dict(zip(PASSES, (output.detach(), *gradients), strict=True))


def bound(sums: Tensor, answer: Tensor, dtype: torch.dtype) -> Tensor:
    """The error bound of each element, as in the tests: 4 (eps_float32 sum |x||w| + eps_dtype |answer|).

    It is that of float32 accumulation, rounded once to `dtype`. `sums`, `answer`: float64, before the activation.
    """
    return 4 * (EPS[torch.float32] * sums + EPS[dtype] * answer.abs()) + 1e-30


def share(answer: Tensor, exact: Tensor, limit: Tensor) -> float:
    """The largest ratio of an element's error to its bound `limit`: right if at most 1, infinite if one is NaN."""
    return float(((answer.detach().double() - exact).abs() / limit).nan_to_num(nan=float("inf")).max())


class Reference:
    """The float64 answers on the rounded inputs, with the bound of the error at each element."""

    def __init__(self, tensors: Tensors) -> None:
        parts = (tensors.input, tensors.weight, tensors.grad)
        exact = Tensors(*(t.detach().double() for t in parts))
        self.expected = passes(exact)
        sums = passes(Tensors(*(t.abs() for t in (exact.input, exact.weight, exact.grad))))
        self.bound = {name: bound(sums[name], self.expected[name], tensors.input.dtype) for name in PASSES}

    def error(self, name: str, answer: Tensor) -> float:
        """`share` of the bound; infinite if the answer has another shape."""
        if answer.shape != self.expected[name].shape:
            return float("inf")
        return share(answer, self.expected[name], self.bound[name])
