"""RepLKNet-31B on the CPU: the TorchScript that is served against OpenVINO, ONNX Runtime and eager PyTorch.

    python -m benchmarks.cpu_inference [--arch replknet_31b] [--batches 1 8] [--rounds 10]

One process, the same weights, pixels uint8 in and logits out, all cores. A candidate whose logits differ from eager's
is not timed. All are measured in fp32; besides, Widefield as `--precision bf16` builds it, and OpenVINO as it comes
(bf16 where the processor has it). OpenVINO and ONNX Runtime know the batch when they compile the graph.
"""

import copy
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.commands import add_batches, add_rounds, check_archs, command_parser
from benchmarks.harness import (
    cores,
    name_here,
    openvino_core,
    other_work_warning,
    publish,
    require_native,
    run_as_served,
    versions,
)
from benchmarks.served import random_network
from benchmarks.timing import SETTLE, interleaved
from server.tritonserver_options import ENVIRONMENT

# Largest distance of an image's logits from eager's, relative in norm; another photograph's are 0.16 or more away.
FP32_TOLERANCE = 1e-4
BF16_TOLERANCE = 6e-2


def exported(arch: str, size: int, folder: Path) -> Any:
    """The eager backbone of a `random_network`; written to `folder` as model.pt, bf16.pt and model.onnx."""
    from export.onnx import export_onnx
    from export.torchscript import ServedBackbone, save_torchscript, trace_backbone
    from models import reparameterize

    network, config = random_network(arch, size)
    deploy = reparameterize(network)
    eager = ServedBackbone(deploy, config.mean, config.std)
    half = ServedBackbone(copy.deepcopy(deploy), config.mean, config.std, "bf16")
    save_torchscript(trace_backbone(half, size), folder / "bf16.pt")
    save_torchscript(trace_backbone(eager, size), folder / "model.pt")
    export_onnx(eager, size, folder / "model.onnx")
    return eager


def candidates(
    eager: Any, folder: Path, batch: int, size: int, threads: int
) -> dict[str, tuple[Callable[[Any], Any], float]]:
    """name -> (pixels -> logits as numpy or Tensor, tolerance). OpenVINO and ONNX Runtime know the static shape."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_free_dimension_override_by_name("batch", batch)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    core = openvino_core()
    model = core.read_model(folder / "model.onnx")
    model.reshape([batch, size, size, 3])
    latency = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    fp32 = core.compile_model(model, "CPU", {**latency, "INFERENCE_PRECISION_HINT": "f32"})
    default = core.compile_model(model, "CPU", latency)
    return {
        "eager": (eager, FP32_TOLERANCE),
        "Widefield TorchScript": (torch.jit.load(str(folder / "model.pt")), FP32_TOLERANCE),
        "Widefield TorchScript bf16": (torch.jit.load(str(folder / "bf16.pt")), BF16_TOLERANCE),
        "OpenVINO fp32": (lambda pixels: fp32(pixels.numpy(), share_outputs=True)[0], FP32_TOLERANCE),
        "ONNX Runtime": (lambda pixels: session.run(None, {"pixels": pixels.numpy()})[0], FP32_TOLERANCE),
        "OpenVINO default precision": (lambda pixels: default(pixels.numpy(), share_outputs=True)[0], BF16_TOLERANCE),
    }


def distance(logits: Any, expected: Any) -> float:
    """The largest distance of an image's logits [classes], relative to the norm of the expected ones."""
    return float(((logits - expected).norm(dim=1) / expected.norm(dim=1)).max())


def measure(arch: str, size: int, batches: list[int], rounds: int) -> list[dict[str, Any]]:
    import torch

    from export.parity import real_pixels

    threads = cores()
    torch.set_num_threads(threads)
    torch.jit.enable_onednn_fusion(True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        eager = exported(arch, size, Path(folder))
        for batch in batches:
            runners = candidates(eager, Path(folder), batch, size, threads)
            pixels = real_pixels(None, size, batch)
            expected = runners["eager"][0](pixels)
            for name, (run, tolerance) in runners.items():
                error = distance(torch.as_tensor(run(pixels)), expected)
                if not error <= tolerance:
                    raise SystemExit(f"{name} differs from eager by {error:.2g} of the norm: no speed reported")
            calls = {name: functools.partial(run, pixels) for name, (run, _) in runners.items()}
            timings = interleaved(calls, rounds, settle=SETTLE)
            baseline = timings["OpenVINO fp32"].median
            for name, timing in timings.items():
                ratio = round(timing.median / baseline, 3)
                rows.append({"batch": batch, "runtime": name, "ms": timing, "ratio_to_openvino_fp32": ratio})
                print(f"batch {batch:2}  {name:28} {timing.median:8.1f} ms  {ratio:5.2f} x OpenVINO fp32", flush=True)
    return rows


def main() -> None:
    parser = command_parser(__doc__, __spec__)
    parser.add_argument("--arch", default="replknet_31b", help="architecture to measure (default: replknet_31b)")
    add_batches(parser, [1, 8], "batch sizes (default: 1 8)")
    add_rounds(parser, 10)
    options = parser.parse_args()
    run_as_served("benchmarks.cpu_inference")
    check_archs(parser, options.arch)
    require_native()
    from models import ModelConfig

    warning, size = other_work_warning(), ModelConfig(options.arch).image_size
    rows = measure(options.arch, size, options.batches, options.rounds)
    publish(
        name_here(f"cpu_inference_{options.arch}"),
        arch=options.arch,
        image_size=size,
        dtype="fp32",
        versions=versions("torch", "openvino", "onnxruntime"),
        environment=ENVIRONMENT,
        warning=warning,
        rows=rows,
    )


if __name__ == "__main__":
    main()
