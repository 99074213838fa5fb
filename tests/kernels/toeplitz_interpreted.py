"""Run by test_toeplitz.py under TRITON_INTERPRET=1: the tensor-core kernel's arithmetic without a GPU."""

import itertools
import sys
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from cases import EPS, Case, make_problem

from kernels.depthwise_conv2d import packed_image, toeplitz, whole_image
from kernels.depthwise_conv2d.reference import depthwise_conv2d_reference
from kernels.depthwise_conv2d.toeplitz import choose_tile

CASES = [
    Case(2, 2, 14, 14, 27, 27),  # RepLKNet's third stage: two row blocks of whole rows
    Case(1, 2, 7, 7, 13, 13),  # its fourth
    Case(3, 1, 5, 28, 29, 29),  # its second
    Case(1, 1, 4, 56, 31, 31),  # its first: rows of 56 in 64 columns
    Case(1, 1, 5, 37, 51, 51),  # runs that begin off a vector
    Case(1, 1, 4, 72, 31, 31),  # wider: windows of 64, several tiles along x, the last one cut, parts off the image
    Case(1, 1, 4, 70, 5, 51),  # windows of 96
    Case(1, 1, 3, 96, 3, 51),  # as wide as the image, which takes three tiles
    Case(2, 2, 5, 4, 9, 9),  # K > H
    Case(65, 1, 3, 5, 3, 3),  # more images than a block of pairs
    Case(1, 1, 33, 3, 7, 1),  # strips
    Case(1, 1, 4, 33, 5, 31),
]
ENDS = [("none", False), ("relu", True), ("gelu", True)]  # activation, bias: what follows the taps knows no shape
VALUES = (float("nan"), float("inf"))
WHOLE = [
    Case(17, 2, 14, 14, 27, 27),
    Case(3, 2, 7, 7, 13, 13),
    Case(1, 2, 5, 4, 51, 9),
    Case(70, 1, 16, 16, 31, 31),  # two programs, as many outputs as there can be
    Case(2, 1, 1, 1, 3, 3),
]
OF_WHOLE = (
    whole_image.launch,
    packed_image.launch,
    partial(whole_image.launch, tile=whole_image.WholeImageTile(False, 16, 4)),
    partial(packed_image.launch, tile=whole_image.WholeImageTile(True, 64, 4)),
)


def run(problem, tile=None, precision="ieee", launch=toeplitz.launch, **more):
    """Into a poisoned output: every element must be written."""
    output = torch.full_like(problem.input, float("nan"))
    arguments = (problem.input, problem.weight, problem.bias, output, problem.activation, precision)
    launch(*arguments, **({"tile": tile} if tile else {}), **more)
    return output


def every_case(dtype):
    for case, end in zip(CASES, itertools.cycle(ENDS)):
        problem = make_problem(case, dtype, *end)
        problem.check(run(problem))
        yield


def largest_filters(dtype):
    """The longest sides, all of them seen one at a time: 255 x 255 taps take a minute. Held to PyTorch's convolution in
    float64: the reference goes tap by tap."""
    for size, kernel in (((1, 130), (3, 255)), ((130, 1), (255, 3)), ((3, 9), (255, 255))):
        input, weight = torch.randn(1, 1, *size).to(dtype), torch.randn(1, 1, *kernel).to(dtype)
        output = torch.full_like(input, float("nan"))
        toeplitz.launch(input, weight, None, output, "none")
        padding = (kernel[0] // 2, kernel[1] // 2)
        exact, sums = (
            F.conv2d(i, w, padding=padding)
            for i, w in ((input.double(), weight.double()), (input.double().abs(), weight.double().abs()))
        )
        bound = 4 * (EPS[torch.float32] * sums + EPS[dtype] * exact.abs())
        assert bool(((output.double() - exact).abs() <= bound).all())
        yield


def turned(dtype):
    """Turn the filter by 180 degrees, as the gradient of the input needs it."""
    for case, launch in (
        *((case, toeplitz.launch) for case in CASES[1::5]),  # whole rows, windows, runs that begin off a vector
        *itertools.product(WHOLE, OF_WHOLE),
    ):
        problem = make_problem(case, dtype)
        problem = replace(problem, weight=problem.weight.flip(2, 3))
        problem.check(run(problem, launch=launch, flip=True))
        yield


def other_tiles(dtype):
    """Sizes that a tuner may choose."""
    problem = make_problem(Case(3, 1, 9, 20, 11, 11), dtype, "relu")
    tile = choose_tile(3, 9, 20, 11, dtype.itemsize)
    changed = ({"block_m": 16}, {"block_m": 128}, {"block_k": 16}, {"block_k": 128}, {"rows": 2}, {"rows": 8})
    windows = {"columns": 16, "window": 40, "offset": 8}  # not of whole rows
    cached = {"cached": True}
    for changes in (*changed, windows, {**windows, "columns": 8, "window": 24}, cached, windows | cached):
        problem.check(run(problem, replace(tile, **changes)))
        yield


def whole_images(dtype):
    for (index, case), (other, launch) in itertools.product(enumerate(WHOLE), enumerate(OF_WHOLE)):
        problem = make_problem(case, dtype, *ENDS[(index + other) % len(ENDS)])  # each launch has each end
        problem.check(run(problem, launch=launch))
        yield


def what_is_not_finite(dtype):
    """A NaN or an infinity reaches the outputs whose taps see it, as in a plain convolution, and no other."""
    case = Case(2, 1, 5, 6, 3, 3)
    tile = replace(choose_tile(2, 5, 6, 3, dtype.itemsize), rows=2)  # of few pixels: each costs a loop over the taps
    ways = [(case, value, where, {"tile": tile}) for value in VALUES for where in ((0, 0), (4, 5), (2, 3))]
    whole = itertools.product(VALUES, OF_WHOLE)
    ways += [(Case(2, 1, 5, 6, 9, 11), value, (2, 3), {"launch": launch}) for value, launch in whole]
    for case, value, where, way in ways:
        problem = make_problem(case, dtype)
        problem.input[1, 0, where[0], where[1]] = value
        expected = depthwise_conv2d_reference(
            *(t.double() for t in (problem.input, problem.weight, problem.bias)), "none"
        )
        output = run(problem, **way).double()
        finite = expected.isfinite()
        assert torch.equal(output.isnan(), expected.isnan())
        assert torch.equal(output.isinf(), expected.isinf())
        assert bool(((output - expected).abs()[finite] <= problem.bound[finite]).all())
        yield


def main() -> None:
    dtype = getattr(torch, sys.argv[1])
    for check in (every_case, largest_filters, turned, other_tiles, whole_images, what_is_not_finite):
        print(check.__name__, sum(1 for _ in check(dtype)))


if __name__ == "__main__":
    main()
