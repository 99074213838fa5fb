"""Where the time of the depthwise layers and of the masked-patch loss goes: each GPU kernel's share of a call.

PyTorch's profiler watches one replay of a CUDA graph of the same calls as the benchmark's, which says what they take
without a profiler. `span_us` less the kernels' sum is what passes between kernels. Results: kernel_times_<gpu>.json.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import masked_patch_loss as loss
from benchmarks.commands import no_options
from benchmarks.cuda_timing import captured, sets_that_exceed_the_cache
from benchmarks.harness import gpu, name_on, pin_float32, versions, write_results
from benchmarks.kernels.candidates import candidates, steps
from benchmarks.kernels.cuda import random_sets
from benchmarks.kernels.layers import PASSES, replknet_31b
from benchmarks.timing import Step

BATCHES = {"layers": 64, "loss": 128}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
LONGEST_NAME = 80  # PyTorch's own have their template's arguments


def kernel_times(run: Step, calls: int) -> dict[str, Any]:
    """Return {"span_us", "kernels": [{"name", "launches", "us"}, longest first]} of one of the `calls` of `run`.

    Raises `RuntimeError` if the profiler saw nothing. Call it under a non-default stream.
    """
    graph = captured(run)
    graph.replay()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        graph.replay()
        torch.cuda.synchronize()
    times = defaultdict(list)
    ranges = []
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA:
            times[event.name[:LONGEST_NAME]].append(event.time_range.end - event.time_range.start)
            ranges.append(event.time_range)
    if not times:
        raise RuntimeError("the profiler saw no kernel: is CUPTI there, and no other profiler?")
    span = max(each.end for each in ranges) - min(each.start for each in ranges)
    kernels = [
        {"name": name, "launches": len(found) / calls, "us": round(sum(found) / calls, 2)}
        for name, found in sorted(times.items(), key=lambda item: -sum(item[1]))
    ]
    return {"span_us": round(span / calls, 2), "kernels": kernels}


def _each(calls: Sequence[Step]) -> list[Any]:
    return [call() for call in calls]


def cases(device: str, size: int) -> Iterator[tuple[str, Step, int]]:
    """Yield a name, a run and its number of calls: the operator's passes, then the loss at `size` pixels."""
    ours = next(candidates(compiled=False))
    for layer in replknet_31b(BATCHES["layers"]):
        sets = random_sets(layer, device)
        for which in PASSES:
            calls = steps(ours, which, sets)
            yield f"{layer} {which}", partial(_each, calls), len(calls)
    for (layout, memory_format), norm in itertools.product(LAYOUTS.items(), loss.NORMS):
        inputs = partial(loss.inputs, BATCHES["loss"], size, torch.bfloat16, memory_format, device)
        first = inputs()
        more = sets_that_exceed_the_cache(first[0].nbytes + first[1].nbytes) - 1
        yield f"loss {layout} {norm}", loss.step(loss.ours, [first, *(inputs() for _ in range(more))], norm), 1 + more


def main(device: str = "cuda", size: int = loss.SIZE) -> None:
    pin_float32()
    torch.manual_seed(0)
    hardware = gpu()
    rows: list[dict[str, Any]] = []
    with torch.cuda.stream(torch.cuda.Stream()):
        for name, run, calls in cases(device, size):
            row = {"case": name} | kernel_times(run, calls)
            rows.append(row)
            told = ", ".join(f"{each['launches']:g} {each['name']} {each['us']} us" for each in row["kernels"])
            print(f"{name}: {row['span_us']} us; {told}", flush=True)
            write_results(
                name_on(hardware, "kernel_times"), gpu=hardware, versions=versions("torch", "triton"), rows=rows
            )


if __name__ == "__main__":
    no_options(__doc__, __spec__)
    main()
