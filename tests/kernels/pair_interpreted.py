"""Run by test_pair.py under TRITON_INTERPRET=1: the two filters of a training pair over one input tile."""

import sys

import torch
from cases import EPS, Case, make_problem

from kernels.depthwise_conv2d.pair_kernel import launch
from kernels.depthwise_conv2d.reference import depthwise_conv2d_reference

CASES = [
    Case(2, 2, 14, 14, 27, 27),
    Case(1, 2, 7, 7, 13, 13),
    Case(3, 1, 6, 28, 29, 29),
    Case(1, 1, 10, 40, 31, 31),  # windows of 48, several tiles along x, the last one cut
    Case(2, 2, 5, 4, 9, 9),  # K > H
    Case(33, 1, 3, 5, 5, 5),  # the small filter is as large
    Case(1, 1, 40, 9, 7, 7),  # row blocks whose rows serve the small filter from the first on
]


def check(case, dtype, value=None):
    """Each output, poisoned first, against its own convolution in float64 within 4 eps sum |x||w|."""
    problem = make_problem(case, dtype, bias=False)
    small = make_problem(Case(case.batch, case.channels, 5, 5, 5, 5), dtype, bias=False, seed=1).weight
    outputs = [torch.full_like(problem.input, 12345.0) for _ in range(2)]
    source = problem.input.clone()
    if value is not None:
        source[0, 0, 0, 0] = value
    launch(source, problem.weight, small, *outputs)
    for output, weight in zip(outputs, (problem.weight, small), strict=True):
        expected = depthwise_conv2d_reference(problem.input.double(), weight.double(), None, "none")
        sums = depthwise_conv2d_reference(problem.input.double().abs(), weight.double().abs(), None, "none")
        bound = 4 * (EPS[torch.float32] * sums + EPS[dtype] * expected.abs()) + 1e-30
        far = torch.ones_like(expected, dtype=torch.bool)
        if value is not None:
            far[0, 0, : weight.shape[2] // 2 + 1, : weight.shape[3] // 2 + 1] = False  # the pixels that see it
        assert torch.equal(output.isfinite(), far)
        assert bool(((output.double() - expected).abs()[far] <= bound[far]).all()), str(case)


def every_case(dtype):
    for case in CASES:
        check(case, dtype)
        yield


def what_is_not_finite(dtype):
    case = Case(1, 1, 9, 6, 5, 7)
    for value in (float("nan"), float("inf")):
        check(case, dtype, value)
        yield


def main() -> None:
    dtype = getattr(torch, sys.argv[1])
    for part in (every_case, what_is_not_finite):
        print(part.__name__, sum(1 for _ in part(dtype)))


if __name__ == "__main__":
    main()
