"""Run by test_depthwise_conv2d_triton.py on a GPU: the library's cubins, without importing `kernels`."""

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from cases import CASES, Case, make_problem

SIZES = [(7, 13), (14, 27), (28, 29), (56, 31), (12, 13), (24, 27), (48, 29), (96, 31)]  # RepLKNet's, 224 and 384 px
SIZES += [(7, 5), (8, 11), (13, 7), (14, 25), (27, 31), (57, 9), (40, 51), (64, 65), (33, 51), (72, 67), (77, 35)]
# Each form of kernels/native/variants.py, by batches from one to blocks that are full, on aligned rows and others.
TILES = [Case(batch, 2, size, size, kernel, kernel) for batch in (1, 8, 20, 33, 65) for size, kernel in SIZES]
TILES += [Case(33, 2, 27, 28, 29, 29), Case(5, 3, 14, 9, 27, 27)]  # rows aligned where images are not


def check_alone() -> None:
    """Importing `kernels` would replace the library's kernels by Python's."""
    assert "kernels" not in sys.modules


def check_capture() -> None:
    """The first call of a form is in a graph's capture: its modules are loaded there; replays read the new input."""
    problem = make_problem(Case(2, 8, 24, 24, 23, 23), torch.float16, "gelu", device="cuda")
    source = torch.zeros_like(problem.input)
    arguments = (problem.weight, problem.bias, "gelu")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = torch.ops.widefield.depthwise_conv2d(source, *arguments)
    source.copy_(problem.input)
    graph.replay()
    torch.cuda.synchronize()
    problem.check(output)


def check_not_finite() -> None:
    """A NaN reaches the outputs whose taps see it, and no other: in whole rows, in windows, in a whole image."""
    for case in (Case(3, 2, 28, 28, 5, 5), Case(3, 2, 9, 72, 5, 5), Case(3, 2, 7, 7, 13, 13)):
        for dtype in (torch.float16, torch.bfloat16):
            problem = make_problem(case, dtype, device="cuda")
            problem.input[1, 1, 2, 3] = float("nan")
            output = torch.ops.widefield.depthwise_conv2d(problem.input, problem.weight, problem.bias, "none")
            seen = torch.zeros_like(output, dtype=torch.bool)
            pad = case.kernel_height // 2
            seen[1, 1, max(0, 2 - pad) : 3 + pad, max(0, 3 - pad) : 4 + pad] = True
            assert torch.equal(output.isnan(), seen), case


def check_threads() -> None:
    """Server instances are threads, each with its own stream."""
    problem = make_problem(Case(5, 16, 28, 28, 29, 29), torch.bfloat16, "relu", device="cuda")
    tensors = (problem.input, problem.weight, problem.bias)
    expected = torch.ops.widefield.depthwise_conv2d(*tensors, "relu")
    torch.cuda.synchronize()

    def serve(_: int) -> bool:
        with torch.cuda.stream(torch.cuda.Stream()):
            return torch.equal(torch.ops.widefield.depthwise_conv2d(*tensors, "relu"), expected)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(serve, range(64)))


def main() -> None:
    torch.ops.load_library(sys.argv[1])
    check_alone()
    check_capture()
    check_threads()
    check_not_finite()
    count = 0
    layouts = (torch.contiguous_format, torch.channels_last)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    everything = itertools.product([*CASES, Case(65, 64, 14, 14, 27, 27)], dtypes, layouts, ("none", "relu", "gelu"))
    tiles = itertools.product(TILES, dtypes, layouts[:1], ("relu", "gelu"))
    for case, dtype, layout, activation in itertools.chain(everything, tiles):
        problem = make_problem(case, dtype, activation, bias=activation != "none", device="cuda")
        source = problem.input.contiguous(memory_format=layout)
        with torch.cuda.stream(torch.cuda.Stream() if count % 2 else torch.cuda.current_stream()):
            torch.cuda.synchronize()
            output = torch.ops.widefield.depthwise_conv2d(source, problem.weight, problem.bias, activation)
            torch.cuda.synchronize()
        problem.check(output)
        assert output.stride() == torch.empty_like(source).stride()
        count += 1
    print(count, "problems right")


if __name__ == "__main__":
    main()
