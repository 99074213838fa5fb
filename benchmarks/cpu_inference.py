"""RepLKNet-31B on the CPU: the TorchScript that is served against OpenVINO, ONNX Runtime and eager PyTorch.

    python -m benchmarks.cpu_inference [--arch replknet_31b] [--batches 1,8] [--rounds 10]

One process, the same weights, pixels uint8 in and logits out, all cores. A candidate whose logits differ from eager's
is not timed. All are measured in fp32; besides, Widefield as `--precision bf16` builds it, and OpenVINO as it comes
(bf16 where the processor has it).
"""

import copy
import functools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.commands import check_archs, command_parser, whole_number, whole_numbers
from benchmarks.harness import (
    interleaved,
    load_average_warning,
    openvino_core,
    publish,
    require_native,
    run_as_served,
    versions,
)
from server.tritonserver_options import ENVIRONMENT

FP32_TOLERANCE = 1e-5  # of the largest logit: at random weights another image's logits are 2e-3 away, or less
BF16_TOLERANCE = 1e-1


def candidates(arch: str, folder: Path, threads: int) -> dict[str, tuple[Callable[[Any], Any], float]]:
    """name -> (pixels -> logits as numpy or Tensor, tolerance)."""
    import onnxruntime
    import torch

    from export.onnx import export_onnx
    from export.torchscript import ServedBackbone, save_torchscript, trace_backbone
    from models import ModelConfig, create_model, reparameterize

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    torch.jit.enable_onednn_fusion(True)
    config = ModelConfig(arch=arch)
    model = create_model(arch).eval()
    deploy = reparameterize(model)
    eager = ServedBackbone(deploy, config.mean, config.std)
    half = ServedBackbone(copy.deepcopy(deploy), config.mean, config.std, "bf16")
    save_torchscript(trace_backbone(half, config.image_size), folder / "bf16.pt")
    save_torchscript(trace_backbone(eager, config.image_size), folder / "model.pt")
    export_onnx(eager, config.image_size, folder / "model.onnx")
    served = torch.jit.load(str(folder / "model.pt"))

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    core = openvino_core()
    latency = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    fp32 = core.compile_model(folder / "model.onnx", "CPU", {**latency, "INFERENCE_PRECISION_HINT": "f32"})
    default = core.compile_model(folder / "model.onnx", "CPU", latency)
    return {
        "eager": (eager, FP32_TOLERANCE),
        "Widefield TorchScript": (served, FP32_TOLERANCE),
        "Widefield TorchScript bf16": (torch.jit.load(str(folder / "bf16.pt")), BF16_TOLERANCE),
        "OpenVINO fp32": (lambda pixels: fp32(pixels.numpy())[0], FP32_TOLERANCE),
        "ONNX Runtime": (lambda pixels: session.run(None, {"pixels": pixels.numpy()})[0], FP32_TOLERANCE),
        "OpenVINO default precision": (lambda pixels: default(pixels.numpy())[0], BF16_TOLERANCE),
    }


def measure(arch: str, size: int, batches: list[int], rounds: int) -> list[dict[str, Any]]:
    import torch

    threads = len(os.sched_getaffinity(0))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        runners = candidates(arch, Path(folder), threads)
        for batch in batches:
            generator = torch.Generator().manual_seed(batch)
            pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=generator)
            expected = runners["eager"][0](pixels)
            for name, (run, tolerance) in runners.items():
                error = float((torch.as_tensor(run(pixels)) - expected).abs().max() / expected.abs().max())
                if not error <= tolerance:
                    raise SystemExit(
                        f"{name} differs from eager by {error:.2g} of the largest logit: no speed reported"
                    )
            calls = {name: functools.partial(run, pixels) for name, (run, _) in runners.items()}
            timings = interleaved(calls, rounds)
            baseline = timings["OpenVINO fp32"].median
            for name, timing in timings.items():
                ratio = round(timing.median / baseline, 3)
                rows.append({"batch": batch, "runtime": name, "ms": timing, "ratio_to_openvino_fp32": ratio})
                print(f"batch {batch:2}  {name:28} {timing.median:8.1f} ms  {ratio:5.2f} x OpenVINO fp32", flush=True)
    return rows


def main() -> None:
    parser = command_parser(__doc__, __spec__)
    parser.add_argument("--arch", default="replknet_31b")
    parser.add_argument("--batches", type=whole_numbers, default="1,8")
    parser.add_argument("--rounds", type=whole_number, default=10)
    options = parser.parse_args()
    run_as_served("benchmarks.cpu_inference")
    check_archs(options.arch)
    require_native()
    from models import ModelConfig

    warning, size = load_average_warning(), ModelConfig(options.arch).image_size
    rows = measure(options.arch, size, options.batches, options.rounds)
    publish(
        f"cpu_inference_{options.arch}",
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
