"""The gradients on a CPU: the operators against PyTorch's own, layer by layer, and a training step of a whole network.

    python -m benchmarks.kernels.cpu_gradients [--batch 8] [--rounds 3]

PyTorch computes both gradients of a depthwise convolution by oneDNN, in either memory format; other runtimes have none.
With ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 both sides are held to AVX2, and the results have their own file.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.commands import add_rounds, command_parser, whole_number
from benchmarks.harness import cores, other_work_warning, publish, require_native, run_as_served, versions
from benchmarks.kernels.cpu import OURS, compared, dtypes, layers, line, ratios
from benchmarks.kernels.layers import Layer
from benchmarks.timing import interleaved
from benchmarks.whole_network import as_right_as_eager, depthwise_by, eager, errors_in_norm, training_step
from kernels import depthwise_conv2d
from kernels.depthwise_conv2d.pytorch import convolution_backward
from models import create_model

PEERS = {"oneDNN channels_last": torch.channels_last, "oneDNN nchw": torch.contiguous_format}
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # of the largest number
SECONDS = 2.0  # for a candidate and layer

Row = dict[str, Any]


def candidates(layer: Layer) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """Return {gradient: {candidate: call}}."""
    shape, size = (layer.batch, layer.channels, layer.size, layer.size), [layer.kernel] * 2
    images = [torch.randn(shape).to(layer.torch_dtype) for _ in range(2)]
    weight = (torch.randn(layer.channels, 1, *size) / layer.kernel).to(layer.torch_dtype)
    grad, input = (t.contiguous(memory_format=torch.channels_last) for t in images)
    ops = torch.ops.widefield
    found: dict[str, dict[str, Callable[[], Tensor]]] = {
        "grad_input": {OURS: lambda: ops.depthwise_conv2d_grad_input(grad, weight)},
        "grad_weight": {OURS: lambda: ops.depthwise_conv2d_grad_weight(grad, input, size)},
    }
    for name, layout in PEERS.items():
        pair = [t.contiguous(memory_format=layout) for t in images]
        for index, calls in enumerate(found.values()):
            calls[name] = partial(of_pytorch, pair, weight, index)
    return found


def of_pytorch(pair: list[Tensor], weight: Tensor, index: int) -> Tensor:
    """Compute the gradient of the input (0) or the filter (1), and not the other."""
    grad, input = pair
    return convolution_backward(grad, input, weight, [i == index for i in range(3)])[index]


@torch.no_grad()
def measure_layer(layer: Layer, rounds: int, seconds: float = SECONDS) -> list[Row]:
    """Return a row for each gradient, as `cpu.compared` makes it."""
    return [
        asdict(layer) | {"gradient": gradient} | compared(calls, TOLERANCE[layer.dtype], rounds, seconds=seconds)
        for gradient, calls in candidates(layer).items()
    ]


def measure_training(arch: str, batch: int, image_size: int, rounds: int) -> list[Row]:
    """Measure forward, backward and AdamW's step in channels_last, with the depthwise layers from 5 x 5 upwards
    computed by the operator or by PyTorch's convolution. There is no speed if the logits or the gradient differ from
    float32's by more than whole_network allows."""
    model = create_model(arch).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    shape = (batch, 3, image_size, image_size)
    images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 1000
    rows = []
    for dtype in dtypes():

        def step(convolve: Callable[..., Tensor], precise: bool = dtype == "float32") -> list[Tensor]:
            with depthwise_by(model, convolve):
                return training_step(model, images, labels, precise, optimizer)

        calls = {OURS: lambda: step(depthwise_conv2d), "eager channels_last": lambda: step(eager)}
        fields = {"arch": arch, "batch": batch, "image_size": image_size, "dtype": dtype}
        exact = step(eager, precise=True)
        ours, theirs = (errors_in_norm(call(), exact) for call in calls.values())
        if all(map(as_right_as_eager, ours, theirs)):
            rows.append(fields | ratios(interleaved(calls, rounds)))
        else:
            rows.append(
                fields | {"wrong": f"logits and gradient off float32 by {ours} of the norm, PyTorch's {theirs}"}
            )
    return rows


def measure(layers: list[Layer], arch: str, batch: int, image_size: int, rounds: int) -> int:
    torch.manual_seed(0)
    threads = cores()
    torch.set_num_threads(threads)
    warning = other_work_warning()
    rows: list[Row] = []
    for layer in layers:
        rows += measure_layer(layer, rounds)
        print(*map(line, rows[-2:]), sep="\n", flush=True)
    training = measure_training(arch, batch, image_size, rounds)
    print(*map(line, training), sep="\n", flush=True)
    capability = torch.backends.cpu.get_cpu_capability()
    publish(
        "gradients_cpu" if capability == "AVX512" else f"gradients_cpu_{capability.lower()}",
        warning=warning,
        capability=capability,
        threads=threads,
        versions=versions("torch"),
        rows=rows,
        training=training,
    )
    return 1 if any("wrong" in row for row in rows + training) else 0


def main() -> int:
    parser = command_parser(__doc__, __spec__)
    parser.add_argument("--batch", type=whole_number, default=8, help="images in a batch (default: 8)")
    add_rounds(parser, 3)
    options = parser.parse_args()
    run_as_served("benchmarks.kernels.cpu_gradients")
    require_native()
    return measure(layers([options.batch]), "replknet_small", options.batch, 224, options.rounds)


if __name__ == "__main__":
    sys.exit(main())
