"""Run by test_depthwise_conv2d_triton.py under TRITON_INTERPRET=1: the kernel's arithmetic without a GPU."""

import itertools
import sys

import torch
from cases import Case, make_problem

from kernels.depthwise_conv2d.kernel import launch

CASES = [
    Case(1, 2, 4, 3, 7, 5),  # K > H
    Case(2, 3, 12, 11, 3, 3),  # several tiles of pixels, channels off the block
    Case(1, 35, 4, 4, 3, 1),  # several blocks of channels
    Case(1, 2, 3, 3, 1, 7),
]
ENDS = [("gelu", True), ("relu", True), ("none", False)]


def main() -> None:
    dtype = getattr(torch, sys.argv[1])
    count = 0
    for case, layout in itertools.product(CASES, (torch.contiguous_format, torch.channels_last)):
        for activation, bias in ENDS if case == CASES[-1] else ENDS[:1]:  # what follows the taps knows no shape
            problem = make_problem(case, dtype, activation, bias)
            source = problem.input.contiguous(memory_format=layout)
            output = torch.full_like(source, float("nan"))  # poisoned: every element must be written
            launch(source, problem.weight, problem.bias, output, activation)
            problem.check(output)
            count += 1
    print(count, "problems right")


if __name__ == "__main__":
    main()
