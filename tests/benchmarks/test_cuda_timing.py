"""Each way of timing is taken, with its conditions, on a faked GPU."""

import pytest
import torch

from benchmarks import cuda_timing


@pytest.fixture
def calls():
    made = []
    return made, [lambda i=i: made.append(i) for i in range(4)]


def test_short_calls_are_replayed_from_a_graph(fake_gpu, calls):
    made, steps = calls
    fake_gpu.elapsed = 0.5
    timing, how = cuda_timing.time_calls(steps, milliseconds=10)
    assert how == "graph"
    assert timing.median == timing.p20 == timing.p80 == 0.125  # four calls a replay
    assert timing.calls == 20
    assert fake_gpu.calls == ["capture"] + ["replay"] * 21
    assert made[4:] == list(range(4)) * 4  # every set of inputs, in warm-up and graph


@pytest.mark.parametrize(("elapsed", "replays"), [(0.001, 200), (0.9, 5)])
def test_replays_are_bounded(fake_gpu, calls, elapsed, replays):
    fake_gpu.elapsed = elapsed
    timing, _ = cuda_timing.time_calls(calls[1], milliseconds=2)
    assert timing.calls == replays


def test_long_calls_are_timed_by_events(fake_gpu, calls):
    made, steps = calls
    fake_gpu.elapsed = 3.0
    timing, how = cuda_timing.time_calls(steps, milliseconds=60)
    assert how == "events"
    assert (timing.median, timing.p20, timing.p80, timing.calls) == (3.0, 2.7, 3.3, 20)
    assert fake_gpu.calls == ["do_bench"]
    assert made == [0] * 5


def test_what_cannot_be_captured_says_why(fake_gpu, calls):
    fake_gpu.capture_error = "operation not permitted when stream is capturing\nand more"
    timing, how = cuda_timing.time_calls(calls[1])
    assert how == "events: not captured, operation not permitted when stream is capturing"
    assert timing.median == 0.5


def test_sets_exceed_the_cache_within_reason(fake_gpu):
    assert [cuda_timing.sets_that_exceed_the_cache(size) for size in (1, 300, 5000)] == [128, 7, 1]


def test_the_losses_benchmark_replays_its_graphs(fake_gpu):
    from benchmarks.masked_patch_loss import timed

    made = []
    timings = timed({"a": lambda: made.append("a"), "b": lambda: made.append("b")}, 5, 3, "cuda")
    assert {name: timing.median for name, timing in timings.items()} == {"a": 0.1, "b": 0.1}
    assert fake_gpu.calls == ["capture"] * 2 + ["replay"] * 2 * (3 + 2 * 3)  # three to warm up, one before each counted
    assert made == ["a"] * 4 + ["b"] * 4


def test_the_gpu_is_described(fake_gpu):
    from benchmarks.harness import gpu

    assert gpu() | {"cuda": "", "cudnn": 0} == {
        "name": "Fake H200",
        "capability": "9.0",
        "multiprocessors": 132,
        "memory_gib": 1.0,
        "l2_mib": 0.0,
        "cuda": "",
        "cudnn": 0,
        "tf32": {"matmul": True, "cudnn": True},
    }
    assert (gpu()["cuda"], gpu()["cudnn"]) == (torch.version.cuda, 91000)
