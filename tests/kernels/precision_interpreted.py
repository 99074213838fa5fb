"""Run by test_precision.py under TRITON_INTERPRET=1: tf32 and tf32x3 in the kernels that take the tensor cores."""

import torch
import torch.nn.functional as F
from cases import Case
from tensor_core_products import rounded_products

from kernels.depthwise_conv2d import grad_weight, toeplitz

EPS = 2.0**-23
BOUND = {"ieee": 4 * EPS, "tf32x3": 4 * EPS, "tf32": 4 * 2.0**-10}  # of sum |x||w|
CASES = [
    Case(2, 1, 14, 14, 27, 27),
    Case(1, 2, 5, 40, 31, 31),  # windows of 48
    Case(3, 1, 6, 28, 9, 29),
]


def forward(images, weight, precision):
    output = torch.full_like(images[0], float("nan"))
    toeplitz.launch(images[0], weight, None, output, "none", precision)
    return output


def of_the_filter(images, weight, precision):
    input, grad = images
    result = torch.full_like(weight, float("nan"))
    grad_weight.launch(grad, input, result, precision)
    return result


def exact_forward(images, weight):
    return F.conv2d(images[0], weight, padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=len(weight))


def exact_of_the_filter(images, weight):
    weight = weight.clone().requires_grad_()
    return torch.autograd.grad(exact_forward(images, weight), weight, images[1])[0]


def check(case, compute, exact):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(case.batch, case.channels, case.height, case.width, generator=generator) for _ in range(2)]
    weight = torch.randn(case.channels, 1, case.kernel_height, case.kernel_width, generator=generator)
    wide = [t.double() for t in images]
    expected = exact(wide, weight.double())
    sums = exact([t.abs() for t in wide], weight.double().abs())
    for precision, bound in BOUND.items():
        with rounded_products() as seen:
            answer = compute(images, weight, precision)
        assert {word.lower() for word in seen} == {precision}, "every product has the precision that was asked for"
        share = ((answer.double() - expected).abs() / (bound * sums + 1e-30)).max().item()
        assert share <= 1, (str(case), precision, share)
        if precision == "tf32":  # the rounding is there: far beyond what IEEE may be off
            assert share > BOUND["ieee"] / BOUND["tf32"], (str(case), share)


def main() -> None:
    for case in CASES:
        check(case, forward, exact_forward)
        check(case, of_the_filter, exact_of_the_filter)
        print(case, "right")


if __name__ == "__main__":
    main()
