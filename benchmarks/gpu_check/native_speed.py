"""The native library's kernels beside Python's: RepLKNet-31B's K x K layers with bias and ReLU, bfloat16, one process.

Importing `kernels` replaces the library's operator on CUDA. So the library's calls are captured in CUDA graphs first,
which keep what they captured; then Python's are, and both are replayed in turn. Results: native_<gpu>.json.
"""

import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.commands import no_options
from benchmarks.cuda_timing import captured, replayed, sets_that_exceed_the_cache
from benchmarks.gpu_check.alone import check_alone
from benchmarks.gpu_check.native import check_answer
from benchmarks.harness import ROOT, gpu, name_on, other_work_warning, pin_float32, versions, write_results
from benchmarks.kernels.layers import Layer, replknet_31b

LIBRARY, BUILD = ROOT / "kernels/native/lib/libwidefield.so", ROOT / "kernels/native/build.py"
BATCHES = (64, 8, 1)
ROUNDS = 30
Graph = Any


@dataclass
class Problem:
    """One layer with its tensors; `inputs` together exceed the L2 cache."""

    layer: Layer
    inputs: list[Tensor]
    weight: Tensor
    bias: Tensor

    def run(self, input: Tensor) -> Tensor:
        output: Tensor = torch.ops.widefield.depthwise_conv2d(input, self.weight, self.bias, "relu")
        return output

    def graph(self) -> Graph:
        """Capture one call for each input. Raises `RuntimeError` if the answer exceeds its error bound."""
        check_answer(self.run, {"weight": self.weight, "bias": self.bias}, self.inputs[0])
        return captured(lambda: [self.run(input) for input in self.inputs])


def make_problem(layer: Layer, device: str) -> Problem:
    dtype, channels = layer.torch_dtype, layer.channels
    shape = (layer.batch, channels, layer.size, layer.size)
    sets = sets_that_exceed_the_cache(2 * layer.input_bytes)
    return Problem(
        layer,
        [torch.randn(shape, device=device, dtype=dtype) for _ in range(sets)],
        torch.randn(channels, 1, layer.kernel, layer.kernel, device=device, dtype=dtype) / layer.kernel,
        torch.randn(channels, device=device, dtype=dtype),
    )


@torch.no_grad()
def measure(import_kernels: Callable[[], Any], device: str = "cuda") -> Iterator[dict[str, Any]]:
    """Yield a row for each layer and batch. Raises `RuntimeError` if other kernels would be timed as the library's."""
    if not runpy.run_path(str(BUILD))["is_current"](LIBRARY):  # by path: an import would import `kernels`
        raise RuntimeError(f"{LIBRARY} is not built from these sources: python kernels/native/build.py")
    torch.ops.load_library(str(LIBRARY))
    problems = [make_problem(layer, device) for batch in BATCHES for layer in replknet_31b(batch)]
    check_alone()
    native = [problem.graph() for problem in problems]
    import_kernels()
    for problem, graph in zip(problems, native, strict=True):
        times = replayed({"native": graph, "python": problem.graph()}, ROUNDS, len(problem.inputs))
        ratio = round(times["native"].median / times["python"].median, 3)
        words = ", ".join(f"{name} {1000 * timing.median:.1f} us" for name, timing in times.items())
        print(f"{problem.layer}: {words}, ratio {ratio}", flush=True)
        yield asdict(problem.layer) | {"ms": times, "native_over_python": ratio}


def main() -> int:
    def import_kernels() -> None:
        import kernels  # noqa: F401

    pin_float32()
    hardware = gpu()
    content = {"gpu": hardware, "versions": versions("torch", "triton"), "warning": other_work_warning()}
    rows = []
    with torch.cuda.stream(torch.cuda.Stream()):
        for row in measure(import_kernels):
            from kernels.depthwise_conv2d import tile_files  # now that the library's calls are captured

            rows.append(row)
            content["tuned"] = tile_files.read(tile_files.cache_file())  # of Python's; the library has its own choice
            path = write_results(name_on(hardware, "native"), **content, rows=rows)  # so that a failure loses none
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    no_options(__doc__, __spec__)
    sys.exit(main())
