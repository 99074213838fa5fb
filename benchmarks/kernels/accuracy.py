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
    """forward, grad_input and grad_weight by PyTorch's own convolution, in the type of `tensors`."""
    input, weight = (t.detach().requires_grad_() for t in (tensors.input, tensors.weight))
    output = F.conv2d(input, weight, padding=weight.shape[2] // 2, groups=weight.shape[0])
    gradients = torch.autograd.grad(output, (input, weight), tensors.grad)
    return dict(zip(PASSES, (output.detach(), *gradients), strict=True))


class Reference:
    """The float64 answers on the rounded inputs, with a bound at each element: accumulated in float32, rounded once.

    |error| <= 4 (eps_float32 sum |x||w| + eps |answer|), as the tests demand.
    """

    def __init__(self, tensors: Tensors) -> None:
        parts = (tensors.input, tensors.weight, tensors.grad)
        exact = Tensors(*(t.detach().double() for t in parts))
        self.expected = passes(exact)
        sums = passes(Tensors(*(t.abs() for t in (exact.input, exact.weight, exact.grad))))
        eps = EPS[tensors.input.dtype]
        self.bound = {
            name: 4 * (EPS[torch.float32] * sums[name] + eps * self.expected[name].abs()) + 1e-30 for name in PASSES
        }

    def error(self, name: str, answer: Tensor) -> float:
        """The largest error over its bound, over all elements: right up to 1. Infinite where an answer is no number."""
        if answer.shape != self.expected[name].shape:
            return float("inf")
        share = (answer.detach().double() - self.expected[name]).abs() / self.bound[name]
        return float(share.nan_to_num(nan=float("inf")).max())
