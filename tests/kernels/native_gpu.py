"""Run by test_depthwise_conv2d_triton.py on a GPU: the library's cubins, with no `kernels` import in the way."""

import itertools
import sys

import torch
from cases import CASES, Case, make_problem


def main() -> None:
    torch.ops.load_library(sys.argv[1])
    count = 0
    layouts = (torch.contiguous_format, torch.channels_last)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for case, dtype, layout in itertools.product([*CASES, Case(65, 64, 14, 14, 27, 27)], dtypes, layouts):
        for activation in ("none", "relu", "gelu"):
            problem = make_problem(case, dtype, activation, bias=activation != "none")
            source = problem.input.cuda().contiguous(memory_format=layout)
            bias = None if problem.bias is None else problem.bias.cuda()
            with torch.cuda.stream(torch.cuda.Stream() if count % 2 else torch.cuda.current_stream()):
                torch.cuda.synchronize()
                output = torch.ops.widefield.depthwise_conv2d(source, problem.weight.cuda(), bias, activation)
                torch.cuda.synchronize()
            problem.check(output)
            assert output.stride() == torch.empty_like(source).stride()
            count += 1
    print(count, "problems right")


if __name__ == "__main__":
    main()
