"""Timing on a GPU: replays of a CUDA graph for what takes microseconds, events around single calls for the rest.

Every call of a list works on inputs of its own; together they exceed the L2 cache, so that none finds its inputs there.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.harness import Timing

Step = Callable[[], Any]
LONG_MS = 1.0  # from here on a launch is lost in the time, and a graph of many calls would take seconds
REPLAYS = (5, 200)  # at least, at most


def sets_that_exceed_the_cache(bytes_a_set: int, most: int = 128) -> int:
    """How many sets of inputs of `bytes_a_set` together take twice the L2 cache."""
    cache = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return max(1, min(most, -(-2 * cache // bytes_a_set)))


def captured(run: Step) -> "torch.cuda.CUDAGraph":
    """A graph of `run`, warmed up and captured on the current stream, which must not be the default one."""
    stream = torch.cuda.current_stream()
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    return graph


def elapsed_ms(run: Step) -> float:
    """Milliseconds between two events around `run` on the current stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def time_calls(calls: Sequence[Step], milliseconds: float = 60.0) -> tuple[Timing, str]:
    """Milliseconds a call, and how they were found: "graph", or "events" (and why, where capturing failed).

    `milliseconds` is about what the measurement takes. Call it under a stream of its own, the one that forward passes
    ran on: autograd runs a gradient on its forward pass's stream, and a graph holds what runs on the one it captures.
    """
    calls[0]()
    torch.cuda.synchronize()
    if min(elapsed_ms(calls[0]) for _ in range(3)) > LONG_MS:  # the host may be late with one
        return _events(calls, milliseconds), "events"
    try:
        graph = captured(lambda: [call() for call in calls])
    except RuntimeError as error:
        torch.cuda.synchronize()
        return _events(calls, milliseconds), f"events: not captured, {str(error).splitlines()[0]}"
    once = elapsed_ms(graph.replay)
    replays = max(REPLAYS[0], min(REPLAYS[1], int(milliseconds / max(once, 1e-3))))
    return Timing.of([elapsed_ms(graph.replay) / len(calls) for _ in range(replays)]), "graph"


def _events(calls: Sequence[Step], milliseconds: float) -> Timing:
    """triton.testing's, which also empties the L2 cache before each call."""
    import triton.testing

    turn = itertools.cycle(calls)
    quantiles = [0.5, 0.2, 0.8]
    median, low, high = triton.testing.do_bench(
        lambda: next(turn)(), warmup=milliseconds / 4, rep=milliseconds, quantiles=quantiles
    )
    return Timing(round(median, 5), round(low, 5), round(high, 5), max(1, int(milliseconds / median)))
