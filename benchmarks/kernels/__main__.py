"""The operators' speed beside their peers', the machine's limit and the goals.

    python -m benchmarks.kernels                     # CUDA where there is a GPU; --seconds bounds the sweep
    python -m benchmarks.kernels --device cpu        # against oneDNN, torch.compile, ONNX Runtime and OpenVINO
    python -m benchmarks.kernels.cpu_gradients       # both gradients and a training step on the CPU
    python -m benchmarks.kernels --draw benchmarks/results/kernels_<gpu>.json     # only the roofline picture

Every layer of RepLKNet-31B, other forms of the kernels, the masked-patch loss, strips, fused activation, tf32, and a
sweep over kernel, image, channels, batch and type. A layer with a wrong answer gets no speed and makes the exit status
1. docs/kernels.md says how it is measured.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import harness
from benchmarks.commands import add_batches, command_parser, positive, whole_number
from benchmarks.harness import (
    cores,
    gpu,
    name_here,
    name_on,
    other_work_warning,
    pin_float32,
    publish,
    require_native,
    run_as_served,
    versions,
    write_results,
)
from benchmarks.kernels import cpu, cuda, variants
from benchmarks.kernels.candidates import candidates
from benchmarks.kernels.goals import goal_rows, goal_table
from benchmarks.kernels.layers import Layer, replknet_31b, sweep
from benchmarks.kernels.roofline import draw
from benchmarks.kernels.tune import layers as tuned_layers
from benchmarks.kernels.tune import tune
from benchmarks.masked_patch_loss import measure as measure_loss
from kernels.depthwise_conv2d import tile_files

Row = dict[str, Any]


def line(row: Row) -> str:
    """The line that is printed for one pass of one layer on a GPU."""
    name = f"N {row['batch']:3} C {row['channels']:4} H {row['size']:3} K {row['kernel']:2} {row['dtype']:8}"
    name += f" {row['pass']:11}"
    if "wrong" in row:
        return f"{name} WRONG, no speed: {row['wrong']}"
    ours = row["candidates"][cuda.OURS]["ms"]
    ratio, peer = row["speedup_over_best_peer"], row["best_peer"]
    against = "no peer" if peer is None else f"{ratio:7.2f}x {peer}"
    return (
        f"{name} {1000 * ours.median:9.2f} us ({1000 * ours.p20:.2f} to {1000 * ours.p80:.2f}) "
        f"{row['tflops_on_valid_taps']:7.1f} TFLOP/s {row['share_of_bandwidth']:6.1%} of bandwidth "
        f"{row['share_of_limit']:6.1%} of limit {against}"
    )


def losses(device: str, bandwidth: float) -> tuple[list[Row], str | None]:
    """Return the masked-patch loss's rows and None, or no rows and the reason, such as a wrong answer."""
    try:
        # Not torch.compile: gpu-check's minutes are counted, and six compilations take some.
        return measure_loss([128], 192, 15, device, bandwidth, ("eager", "widefield")), None
    except (SystemExit, Exception) as failure:
        return [], str(failure)


def run_cuda(seconds: float, device: str = "cuda", tuning: float | None = None, compiled: bool = True) -> int:
    """Measure the ceilings, RepLKNet-31B's layers with every peer, the kernels' forms, the loss, the variants and as
    much of the sweep as fits in `seconds`; before the layers the tuner runs for `tuning` seconds, if given. Returns the
    exit status. `compiled`: torch.compile is a peer."""
    deadline = time.monotonic() + seconds
    torch.manual_seed(0)
    pin_float32()
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    hardware = gpu()
    name = name_on(hardware, "kernels")
    content: Row = {"gpu": hardware, "versions": versions("torch", "triton"), "warning": other_work_warning()}
    content |= {
        "complete": False,
        "tuned": tile_files.read(tile_files.cache_file()),
        "rows": [],
        "losses": [],
        "variants": [],
    }

    def save(kind: str, told: Callable[[Row], str], rows: list[Row]) -> None:
        content[kind] += rows
        for row in rows:
            print(told(row), flush=True)
        write_results(name, **content)  # after every layer, so that an interrupted run keeps its results

    with torch.cuda.stream(torch.cuda.Stream()):  # graphs need one; gradients follow the forward pass
        bandwidths = cuda.measure_bandwidths(device)
        torch.cuda.empty_cache()
        best = max(bandwidths, key=bandwidths.__getitem__)
        ceilings = cuda.measure_ceilings(device, bandwidths[best])
        content["ceilings"] = asdict(ceilings) | {"bandwidth_of": best, "bandwidths": bandwidths}
        peaks = ", ".join(f"{dtype} {peak / 1e12:.0f} TFLOP/s" for dtype, peak in ceilings.peak.items())
        print(f"{hardware['name']}: {best} moves {ceilings.bandwidth / 1e12:.2f} TB/s; matrix product {peaks}")
        untuned: list[str] = []
        if tuning:
            content["tuned"], untuned = tune(tuned_layers(), device, tuning, harness.RESULTS / f"{name}_tiles.json")
        print(f"tuned: {len(content['tuned'])} shapes", flush=True)

        def measure(brief: bool, layer: Layer) -> list[Row]:
            ways = (way for way in candidates(compiled and not brief) if way.brief or not brief)
            return cuda.measure_layer(layer, ways, device, ceilings)

        save_rows = partial(save, "rows", line)
        left_out = cuda.measure_until(deadline, replknet_31b(64), partial(measure, False), save_rows)

        def measure_variants(chosen: Iterable[variants.Variant]) -> list[str]:
            save_variants = partial(save, "variants", variants.line)
            return cuda.measure_until(
                deadline, chosen, lambda variant: [variants.measure_variant(variant, device)], save_variants
            )

        left_out += measure_variants(variants.forms())
        content["losses"], failure = losses(device, ceilings.bandwidth)
        write_results(name, **content)
        skipped = measure_variants(variants.variants())
        later = cuda.measure_until(deadline, sweep(), partial(measure, True), save_rows)
    content |= {"complete": True, "left_out": left_out + skipped + later}
    content |= {"loss_failure": failure, "tuner_failures": untuned}
    content["goals"] = goal_rows(content["rows"], content["losses"])
    path = write_results(name, **content)
    print("\n".join(goal_table(content["rows"], content["losses"])))
    print(f"wrote {path}")
    draw_if_possible(path)
    rows = content["rows"] + content["variants"]
    wrong = [row for row in rows if "wrong" in row]
    print(f"{len(rows)} rows, {len(wrong)} wrong; {len(content['left_out'])} layers left out for time")
    for each in untuned:
        print(f"tuner: {each}")
    if failure:
        print(f"masked-patch loss: {failure}")
    if left_out:
        what = "RepLKNet-31B's own layers and the kernels' forms"
        print(f"{seconds:.0f} s did not suffice for {what}: give --seconds more")
    return 1 if wrong or failure or untuned or left_out else 0


def draw_if_possible(path: Path) -> None:
    try:
        print(f"wrote {draw(json.loads(path.read_text()), path.stem)}")
    except (ImportError, ValueError) as reason:
        print(f"no picture: {reason}")


def run_cpu(batches: list[int], rounds: int) -> int:
    run_as_served("benchmarks.kernels")
    require_native()
    torch.manual_seed(0)
    threads = cores()
    torch.set_num_threads(threads)
    warning = other_work_warning()
    rows = []
    for layer in cpu.layers(batches):
        rows.append(cpu.measure_layer(layer, rounds, threads))
        print(cpu.line(rows[-1]), flush=True)
    found = versions("torch", "openvino", "onnxruntime")
    slower = [row for row in rows if row.get("ratio_to_best_peer", 0) > 1.05]
    print(f"more than 5 % slower than the best peer on {len(slower)} of {len(rows)} layers")
    publish(name_here("kernels_cpu"), warning=warning, threads=threads, versions=found, rows=rows)
    return 1 if any("wrong" in row for row in rows) else 0


def main() -> int:
    parser = command_parser(__doc__, __spec__)
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="device to measure on (default: a GPU if there is one)",
    )
    parser.add_argument(
        "--seconds",
        type=positive,
        default=240,
        help="seconds after which no further layer begins, on CUDA (default: 240)",
    )
    parser.add_argument(
        "--tune", type=positive, help="seconds to tune before the layers, on CUDA (default: they are not tuned)"
    )
    parser.add_argument(
        "--no-compile", action="store_true", help="without torch.compile, which takes seconds a shape, on CUDA"
    )
    add_batches(parser, [1, 8], "batch sizes on the CPU (default: 1 8)")
    parser.add_argument(
        "--rounds", type=whole_number, default=15, help="rounds of interleaved calls on the CPU (default: 15)"
    )
    parser.add_argument("--draw", type=Path, metavar="FILE", help="only draw the roofline of this results file")
    options = parser.parse_args()
    if options.draw:
        try:
            print(f"wrote {draw(json.loads(options.draw.read_text()), options.draw.stem)}")
        except OSError as error:
            parser.error(f"--draw {options.draw}: {error.strerror}")
        except (ValueError, LookupError, TypeError) as error:
            parser.error(f"--draw {options.draw}: no results of a GPU, kernels_<gpu>.json ({error})")
        return 0
    if options.device == "cpu":
        return run_cpu(options.batches, options.rounds)
    if not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no GPU here")
    return run_cuda(options.seconds, tuning=options.tune, compiled=not options.no_compile)


if __name__ == "__main__":
    sys.exit(main())
