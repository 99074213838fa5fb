"""Run by test_toeplitz.py under TRITON_INTERPRET=1: the tensor-core kernel's arithmetic without a GPU."""

import itertools
import sys
from dataclasses import replace

import torch
from cases import Case, make_problem

from kernels.depthwise_conv2d.reference import depthwise_conv2d_reference
from kernels.depthwise_conv2d.toeplitz import choose_tile, launch

CASES = [
    Case(2, 2, 14, 14, 27, 27),  # RepLKNet's third stage: two row blocks of whole rows
    Case(1, 2, 7, 7, 13, 13),  # its fourth
    Case(3, 1, 6, 28, 29, 29),  # its second: whole rows of 32
    Case(1, 1, 10, 40, 31, 31),  # its first: windows of 48, several tiles along x, the last one cut
    Case(1, 1, 5, 37, 51, 51),  # windows of 80
    Case(2, 2, 5, 4, 9, 9),  # K > H
    Case(65, 1, 3, 5, 3, 3),  # more images than a block of pairs
    Case(1, 1, 33, 3, 7, 1),  # strips
    Case(1, 1, 4, 33, 5, 31),
]


def run(problem, source, tile=None, precision="ieee"):
    """Into a poisoned output: every element must be written."""
    output = torch.full_like(source, float("nan"))
    launch(source, problem.weight, problem.bias, output, problem.activation, precision, tile=tile)
    return output


def every_case(dtype):
    for case, layout in itertools.product(CASES, (torch.contiguous_format, torch.channels_last)):
        for activation, bias in (("none", False), ("relu", True), ("gelu", True)):
            problem = make_problem(case, dtype, activation, bias)
            problem.check(run(problem, problem.input.contiguous(memory_format=layout)))
            yield


def other_tiles(dtype):
    """Sizes that a tuner may choose."""
    problem = make_problem(Case(3, 1, 9, 20, 11, 11), dtype, "relu")
    tile = choose_tile(3, 9, 20, 11, dtype.itemsize)
    for changes in ({"block_m": 16}, {"block_m": 128}, {"block_k": 16}, {"block_k": 128}, {"rows": 2}, {"rows": 16}):
        problem.check(run(problem, problem.input, replace(tile, **changes)))
        yield


def what_is_not_finite(dtype):
    """A NaN or an infinity reaches the outputs whose taps see it, as in a plain convolution, and no other."""
    case = Case(2, 1, 5, 6, 3, 3)
    tile = replace(choose_tile(2, 5, 6, 3, dtype.itemsize), rows=2)  # of few pixels: each costs a loop over the taps
    for value, where in itertools.product((float("nan"), float("inf")), ((0, 0), (4, 5), (2, 3))):
        problem = make_problem(case, dtype)
        problem.input[1, 0, where[0], where[1]] = value
        expected = depthwise_conv2d_reference(
            *(t.double() for t in (problem.input, problem.weight, problem.bias)), "none"
        )
        output = run(problem, problem.input, tile).double()
        finite = expected.isfinite()
        assert torch.equal(output.isnan(), expected.isnan())
        assert torch.equal(output.isinf(), expected.isinf())
        assert bool(((output - expected).abs()[finite] <= problem.bound[finite]).all())
        yield


def main() -> None:
    dtype = getattr(torch, sys.argv[1])
    for check in (every_case, other_tiles, what_is_not_finite):
        print(check.__name__, sum(1 for _ in check(dtype)))


if __name__ == "__main__":
    main()
