"""The native library on a GPU, through TorchScript, in a process that never imports `kernels`.

This process traces the operator on the CPU. A second process loads the library and the file, and compares the results
with float64 in every type and layout, in a CUDA graph, and from two threads on two streams.
"""

import sys
import threading
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.commands import no_options
from benchmarks.gpu_check.alone import check_alone, run_alone
from benchmarks.kernels.accuracy import EPS, bound, share

CASES = ((8, 56, 31), (16, 28, 29), (64, 14, 27), (64, 7, 13), (32, 9, 5))  # channels, height = width, kernel
FELL_BACK = "no kernel is compiled for this GPU"


def write_case(folder: Path, index: int) -> None:
    """Write <index>.pt, the traced operator with bias and ReLU, and <index>.case, its filter and bias."""
    from kernels import depthwise_conv2d

    channels, size, kernel = CASES[index]

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(channels, 1, kernel, kernel) / kernel)
            self.bias = torch.nn.Parameter(torch.randn(channels))

        def forward(self, x: Tensor) -> Tensor:
            return depthwise_conv2d(x, self.weight, self.bias, "relu")

    layer = Layer().eval()
    with torch.no_grad():
        traced = torch.jit.trace(layer, torch.randn(2, channels, size, size))
    traced.save(str(folder / f"{index}.pt"))
    torch.save({"weight": layer.weight.data, "bias": layer.bias.data, "size": size}, folder / f"{index}.case")


def load(folder: Path, index: int, dtype: torch.dtype, device: str) -> tuple[Any, dict[str, Any]]:
    module = torch.jit.load(str(folder / f"{index}.pt"), map_location=device).to(dtype)
    return module, torch.load(folder / f"{index}.case")


def check_answer(module: Any, case: dict[str, Any], input: Tensor) -> None:
    """Raise `RuntimeError` unless the answer is within its error bound of float64's."""
    dtype = input.dtype
    weight, bias = (case[name].to(input.device, dtype).double() for name in ("weight", "bias"))
    settings: dict[str, Any] = {"padding": weight.shape[2] // 2, "groups": weight.shape[0]}
    exact = F.conv2d(input.double(), weight, bias, **settings)
    sums = F.conv2d(input.double().abs(), weight.abs(), bias.abs(), **settings)
    output = module(input)
    found = share(output, exact.relu(), bound(sums, exact, dtype))
    where = f"{list(input.shape)} {dtype} strides {input.stride()}"
    if output.dtype != dtype or not found <= 1:
        raise RuntimeError(f"{where}: the error is {found:.3g} times its bound, in {output.dtype}")


def check_graph(module: Any, input: Tensor) -> None:
    """Raise `RuntimeError` unless a replayed graph computes with the input's values at the time of the replay."""
    for _ in range(3):
        module(input)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = module(input)
    input.copy_(torch.randn_like(input))
    expected = module(input).clone()
    output.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    if not torch.equal(output, expected):
        raise RuntimeError(f"{list(input.shape)}: a replayed graph differs from a call")


def check_threads(module: Any, inputs: list[Tensor], calls: int = 50) -> None:
    """Raise `RuntimeError` unless threads on separate streams get the same bits as a single thread."""
    expected = [module(input).clone() for input in inputs]
    torch.cuda.synchronize()
    faults: list[str] = []

    def work(index: int) -> None:
        try:
            with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
                for call in range(calls):
                    output = module(inputs[index])
                    torch.cuda.current_stream().synchronize()
                    if not torch.equal(output, expected[index]):
                        faults.append(f"thread {index}, call {call}: another answer than alone")
                        return
        except Exception as error:
            faults.append(f"thread {index}: {error}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise RuntimeError("; ".join(faults))


@torch.no_grad()
def check_all(folder: Path, device: str) -> int:
    """Check every case, type and layout; returns the number of answers checked."""
    count = 0
    for index, (channels, size, _) in enumerate(CASES):
        for dtype in EPS:
            module, case = load(folder, index, dtype, device)
            for layout in (torch.contiguous_format, torch.channels_last):
                for batch in (1, 65):
                    input = torch.randn(batch, channels, size, size, device=device).to(dtype)
                    check_answer(module, case, input.contiguous(memory_format=layout))
                    count += 1
            check_graph(module, torch.randn(3, channels, size, size, device=device).to(dtype))
            check_threads(module, [torch.randn(b, channels, size, size, device=device).to(dtype) for b in (2, 7)])
    return count


def alone(library: str, folder: str) -> int:
    """Run the checks in the second process."""
    torch.ops.load_library(library)
    count = check_all(Path(folder), "cuda")
    check_alone()
    print(f"{count} answers right, {len(CASES) * len(EPS)} graphs and pairs of threads")
    return 0


def main() -> int:
    def write_files(folder: Path) -> None:
        for index in range(len(CASES)):
            write_case(folder, index)

    done = run_alone("benchmarks.gpu_check.native", write_files, capture_output=True)
    if done is None:
        return 1
    print(done.stderr.strip())
    print(done.stdout.strip())
    if FELL_BACK in done.stderr:
        print("the library holds no cubin for this GPU: its answers were PyTorch's")
        return 1
    return done.returncode


if __name__ == "__main__":
    if len(sys.argv) == 3:
        sys.exit(alone(*sys.argv[1:]))
    no_options(__doc__, __spec__)
    sys.exit(main())
