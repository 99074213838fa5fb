"""Timing on a GPU: replays of a CUDA graph for what takes microseconds, events around single calls for the rest.

Every call of a list has its own inputs. Together they exceed the L2 cache, so that no call finds its inputs there.
"""

import itertools
from collections.abc import Mapping, Sequence

import torch

from benchmarks.timing import Step, Timing, interleaved

LONG_MS = 1.0  # above this a launch does not matter, and a graph of many calls would take seconds
REPLAYS = (5, 200)  # at least, at most


def sets_that_exceed_the_cache(bytes_a_set: int, most: int = 128) -> int:
    """The number of sets of `bytes_a_set` that together take twice the L2 cache; at most `most`."""
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


def replayed(graphs: "Mapping[str, torch.cuda.CUDAGraph]", rounds: int, calls: int) -> dict[str, Timing]:
    """Replay the graphs in turn; milliseconds of one of the `calls` that each holds."""
    replays = {name: graph.replay for name, graph in graphs.items()}
    timings = interleaved(replays, rounds, burst=2, clock=elapsed_ms)
    return {name: timing.of_one(calls) for name, timing in timings.items()}


def time_calls(calls: Sequence[Step], milliseconds: float = 60.0) -> tuple[Timing, str]:
    """Return milliseconds a call, and the method: "graph", or "events" (with the reason if capturing failed).

    `milliseconds` is about what the measurement takes. Call it under a non-default stream, the one that the forward
    passes ran on: autograd runs a backward pass on the stream of its forward pass, and a graph captures one stream.
    """
    calls[0]()
    torch.cuda.synchronize()
    if min(elapsed_ms(calls[0]) for _ in range(3)) > LONG_MS:  # the host may be late with a single call
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
    """Time with triton.testing.do_bench, which also clears the L2 cache before each call."""
    import triton.testing

    turn = itertools.cycle(calls)
    quantiles = [0.5, 0.2, 0.8]
    median, low, high = triton.testing.do_bench(
        lambda: next(turn)(), warmup=milliseconds / 4, rep=milliseconds, quantiles=quantiles
    )
    return Timing(round(median, 5), round(low, 5), round(high, 5), max(1, int(milliseconds / median)))
