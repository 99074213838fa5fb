"""A layer on a GPU: every candidate's answer is compared with float64's, then timed and set beside the limit."""

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.cuda_timing import elapsed_ms, sets_that_exceed_the_cache, time_calls
from benchmarks.harness import reason
from benchmarks.kernels.accuracy import Reference, Tensors
from benchmarks.kernels.candidates import NATIVE, OURS, Candidate, steps
from benchmarks.kernels.layers import PASSES, Ceilings, Layer
from benchmarks.timing import Step, Timing

PEER_TOLERANCE = 16.0  # times the bound that a peer's error may be: it may sum in another order, not be wrong
BANDWIDTH_BYTES = {"copy": 2**32, "add": 2**30}  # of the source; the target is of the same size
COPIES = 10
MATMUL_SIZES = {"bfloat16": 8192, "float16": 8192, "float32": 4096}

Row = dict[str, Any]
Chosen = TypeVar("Chosen")


def measure_bandwidths(device: str, sizes: dict[str, int] = BANDWIDTH_BYTES) -> dict[str, float]:
    """Measure bytes/s read and written, by "copy" and by "add", a kernel that adds a number to float32.

    The copy is timed by events: in a graph a copy engine would make it, more slowly. It is smaller on a smaller GPU.
    """
    room = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory // 8
    length = min(sizes["copy"], room)
    source = torch.randint(0, 256, (length,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [elapsed_ms(lambda: target.copy_(source)) for _ in range(1 + COPIES)][1:]  # the first warms up
    found = {"copy": 2 * length / Timing.of(times).median * 1000}
    addend = torch.randn(min(sizes["add"], room) // 4, device=device)
    total = torch.empty_like(addend)
    added, _ = time_calls([lambda: torch.add(addend, 1.0, out=total)])
    return found | {"add": 2 * 4 * addend.numel() / added.median * 1000}


def measure_ceilings(device: str, bandwidth: float, sizes: dict[str, int] = MATMUL_SIZES) -> Ceilings:
    """Return the `bandwidth` and FLOP/s of a large matrix product of each type (float32: IEEE, no TF32)."""
    peak = {}
    for name, size in sizes.items():
        a, b = (torch.randn(size, size, device=device).to(getattr(torch, name)) for _ in range(2))
        product, _ = time_calls([lambda a=a, b=b: a @ b])  # type: ignore[misc]
        peak[name] = 2 * size**3 / product.median * 1000
    return Ceilings(bandwidth, peak)


def random_sets(layer: Layer, device: str) -> list[Tensors]:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(layer.torch_dtype)

    image = (layer.batch, layer.channels, layer.size, layer.size)
    return [
        Tensors(random(*image), random(layer.channels, 1, layer.kernel, layer.kernel) / layer.kernel, random(*image))
        for _ in range(sets_that_exceed_the_cache(layer.bytes))
    ]


def measure_layer(layer: Layer, ways: Iterable[Candidate], device: str, ceilings: Ceilings) -> list[Row]:
    """Return a row for each pass. A candidate with a wrong answer is not timed; if it is ours, the row has no speed."""
    sets = random_sets(layer, device)
    reference = Reference(sets[0])
    chosen = [way for way in ways if way.suits(layer)]
    torch.compiler.reset()  # a compiled candidate keeps eight shapes at most
    kinds = {way.name: way.kind for way in chosen}
    rows = []
    for which in PASSES:
        error_of = partial(reference.error, which)
        results = {
            way.name: measure(way.kind == "ours", partial(steps, way, which, sets), error_of, way.settings)
            for way in chosen
            if which in way.passes
        }
        rows.append(asdict(layer) | {"pass": which} | judge(layer, results, kinds, ceilings))
    return rows


def measure(
    ours: bool,
    make_calls: Callable[[], list[Step]],
    error_of: Callable[[Tensor], float],
    settings: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Row:
    """Return {"error": share of the bound, "ms": Timing, "timer"}, or without a speed {"error", "wrong"} or {"failed"}.

    `error_of`: from an answer of the first call to its share of the bound. `settings` is active throughout.
    """
    try:
        with settings():
            calls = make_calls()
            error = error_of(calls[0]())
            if not error <= (1.0 if ours else PEER_TOLERANCE):
                return {"error": f"{error:.3g}", "wrong": f"{error:.3g} times the bound of its error"}
            timing, timer = time_calls(calls)
            again = error_of(calls[0]())  # after thousands of calls on this stream
            if again != error and ours:
                why = f"its error went from {error:.3g} to {again:.3g} of the bound"
                return {"error": f"{again:.3g}", "wrong": why}
            return {"error": round(error, 3), "ms": timing, "timer": timer}
    except Exception as failure:  # of a compiler, out of memory, ...: the other candidates are still measured
        return {"failed": reason(failure)}


def judge(layer: Layer, results: dict[str, Row], kinds: dict[str, str], ceilings: Ceilings) -> Row:
    """Compare our time with the limit and the peers; {"wrong": reason} and no speed if our answer is wrong."""
    for name, result in results.items():
        if kinds[name] == "ours" and "ms" not in result:
            why = result.get("wrong") or result["failed"]
            errors = {other: r.get("error", r.get("failed")) for other, r in results.items()}
            return {"wrong": f"{name}: {why}", "errors": errors}
    ours = results[OURS]["ms"].median
    figures: Row = {
        "tflops_on_valid_taps": round(layer.flops / ours / 1e9, 2),
        "share_of_bandwidth": round(layer.bytes / ours * 1000 / ceilings.bandwidth, 4),
        "limit_us": round(1000 * layer.limit_ms(ceilings), 3),
        "share_of_limit": round(layer.limit_ms(ceilings) / ours, 4),
    }
    peers = {name: result["ms"].median for name, result in results.items() if "ms" in result and kinds[name] != "ours"}
    for figure, kind in (("speedup_over_native", "native"), ("speedup_over_best_cudnn", "cudnn")):
        times = [median for name, median in peers.items() if kinds[name] == kind]
        figures[figure] = round(min(times) / ours, 3) if times else None
    if NATIVE in peers:  # the native kernel in the layout that it was written for
        figures["speedup_over_native"] = round(peers[NATIVE] / ours, 3)
    best = min(peers, key=peers.__getitem__, default=None)
    figures |= {"best_peer": best, "speedup_over_best_peer": None if best is None else round(peers[best] / ours, 3)}
    return {"candidates": results} | figures


def measure_until(
    deadline: float,
    chosen: Iterable[Chosen],
    measure: Callable[[Chosen], list[Row]],
    report: Callable[[list[Row]], None],
) -> list[str]:
    """Report the rows of each of the `chosen` that is begun before `deadline`; returns the names of the others."""
    left_out = []
    for each in chosen:
        if time.monotonic() > deadline:
            left_out.append(str(each))
        else:
            report(measure(each))
    return left_out
