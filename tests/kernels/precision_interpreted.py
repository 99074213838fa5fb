"""Run by test_precision.py under TRITON_INTERPRET=1: tf32 and tf32x3 in the kernels that take the tensor cores."""

import torch
import torch.nn.functional as F
from cases import Case
from tensor_core_products import rounded_products

from kernels.depthwise_conv2d import grad_weight, pair_kernel, toeplitz

EPS = 2.0**-23
BOUND = {"ieee": 4 * EPS, "tf32x3": 4 * EPS, "tf32": 4 * 2.0**-10}  # of sum |x||w|
CASES = [
    Case(2, 1, 14, 14, 27, 27),
    Case(1, 2, 5, 40, 31, 31),  # windows of 48
    Case(3, 1, 6, 28, 9, 29),
]


def forward(images, weights, precision):
    """Forward and the pair's two outputs."""
    input, _ = images
    outputs = [torch.full_like(input, float("nan")) for _ in range(3)]
    toeplitz.launch(input, weights[0], None, outputs[0], "none", precision)
    pair_kernel.launch(input, *weights, *outputs[1:], precision)
    return outputs


def of_the_filter(images, weights, precision):
    input, grad = images
    result = torch.full_like(weights[0], float("nan"))
    grad_weight.launch(grad, input, result, precision)
    return [result]


def exact_forward(images, weights):
    large, small = (F.conv2d(images[0], w, padding=(w.shape[2] // 2, w.shape[3] // 2), groups=len(w)) for w in weights)
    return [large, large, small]


def exact_of_the_filter(images, weights):
    input, grad = images
    weight = weights[0].clone().requires_grad_()
    output = F.conv2d(input, weight, padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=len(weight))
    return torch.autograd.grad(output, weight, grad)


def check(case, compute, exact):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(case.batch, case.channels, case.height, case.width, generator=generator) for _ in range(2)]
    sizes = ((case.kernel_height, case.kernel_width), (5, 5))
    weights = [torch.randn(case.channels, 1, *size, generator=generator) for size in sizes]
    wide = [[t.double() for t in tensors] for tensors in (images, weights)]
    expected, sums = exact(*wide), exact(*([t.abs() for t in tensors] for tensors in wide))
    for precision, bound in BOUND.items():
        with rounded_products() as seen:
            answers = compute(images, weights, precision)
        assert {word.lower() for word in seen} == {precision}, "every product has the precision that was asked for"
        shares = [
            ((a.double() - e).abs() / (bound * s + 1e-30)).max().item()
            for a, e, s in zip(answers, expected, sums, strict=True)
        ]
        assert max(shares) <= 1, (str(case), precision, shares)
        if precision == "tf32":  # the rounding is there: far beyond what IEEE may be off
            assert min(shares) > BOUND["ieee"] / BOUND["tf32"], (str(case), shares)


def main() -> None:
    for case in CASES:
        check(case, forward, exact_forward)
        check(case, of_the_filter, exact_of_the_filter)
        print(case, "right")


if __name__ == "__main__":
    main()
