"""Every large-kernel layer shape of RepLKNet on the CPU: the served operator against oneDNN through PyTorch.

    python -m benchmarks.depthwise_cpu [--batches 1,8] [--rounds 15]

float32, bias and ReLU fused where the implementation can. "onednn" is torch's own fused convolution in channels_last
with its filter packed beforehand; "nchw" is a plain Conv2d on contiguous input (at batch 1 only: it is that slow).
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.harness import interleaved, load_average_warning, run_as_served, versions, write_results
from kernels import depthwise_conv2d

SHAPES = [(128, 56, 31), (256, 28, 29), (512, 14, 27), (1024, 7, 13), (128, 56, 5)]  # C, H = W, K


def valid_taps(size: int, kernel: int) -> int:
    """Taps inside the image along one side, summed over its pixels."""
    return sum(min(size, x + kernel // 2 + 1) - max(0, x - kernel // 2) for x in range(size))


def candidates(batch: int, channels: int, size: int, kernel: int) -> dict[str, Callable[[], torch.Tensor]]:
    nchw = torch.randn(batch, channels, size, size)
    input = nchw.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(channels, 1, kernel, kernel) / kernel, torch.randn(channels)
    padding = [kernel // 2] * 2
    packed = torch.ops.mkldnn._reorder_convolution_weight(weight, padding, [1, 1], [1, 1], channels, list(input.shape))
    fused = torch.ops.mkldnn._convolution_pointwise
    calls = {
        "onednn": lambda: fused(input, packed, bias, padding, [1, 1], [1, 1], channels, "relu", [], ""),
        "widefield": lambda: depthwise_conv2d(input, weight, bias, "relu"),
    }
    if batch == 1:
        calls["nchw"] = lambda: F.conv2d(nchw, weight, bias, padding=kernel // 2, groups=channels).relu_()
    return calls


@torch.inference_mode()
def measure(batches: list[int], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for batch in batches:
        for channels, size, kernel in SHAPES:
            calls = candidates(batch, channels, size, kernel)
            expected = calls["onednn"]()
            for name, call in calls.items():
                error = float((call() - expected).abs().max() / expected.abs().max())
                if not error < 1e-5:
                    raise SystemExit(f"{name} differs from oneDNN by {error:.2g} at {batch, channels, size, kernel}")
            timings = interleaved(calls, rounds)
            macs = batch * channels * valid_taps(size, kernel) ** 2
            ratio = round(timings["onednn"].median / timings["widefield"].median, 2)
            gflops = round(2 * macs / timings["widefield"].median / 1e6)
            rows.append(
                {"batch": batch, "channels": channels, "size": size, "kernel": kernel, "ms": timings}
                | {"speedup_over_onednn": ratio, "gflops_on_valid_taps": gflops}
            )
            text = "  ".join(f"{name} {timing.median:7.2f} ms" for name, timing in timings.items())
            print(
                f"batch {batch} C {channels:4} H {size:2} K {kernel:2}  {text}  {ratio:.2f}x oneDNN, {gflops} GFLOP/s"
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    run_as_served("benchmarks.depthwise_cpu")
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    warning = load_average_warning()
    rows = measure([int(b) for b in options.batches.split(",")], options.rounds)
    path = write_results("depthwise_cpu", dtype="fp32", versions=versions("torch"), warning=warning, rows=rows)
    print(f"wrote {path}" + (f"; {warning}" if warning else ""))


if __name__ == "__main__":
    main()
