"""A layer of the GPU's benchmark on a faked GPU: what is timed, what is refused."""

import time

import pytest
import torch

from benchmarks.kernels import __main__ as main
from benchmarks.kernels import candidates as c
from benchmarks.kernels import cuda, variants
from benchmarks.kernels.layers import PASSES, Ceilings, Layer
from benchmarks.timing import Timing
from kernels import depthwise_conv2d

LAYER = Layer(2, 4, 7, 9, "float32")
CEILINGS = Ceilings(1e9, {"float32": 1e9, "bfloat16": 1e9})


def broken(input, weight):
    output = c.convolution(input, weight)
    return output + (torch.arange(output.numel()).view(output.shape) == 5) * 1.0


def raising(input, weight):
    raise ValueError("no such layer\nmore")


class Moving:
    """A layer whose second and third answers differ from the first, each within the bound."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input, weight):
        self.calls += 1
        return c.convolution(input, weight) * (1 + 1e-7 * min(self.calls, 3))


@pytest.mark.usefixtures("fake_gpu")
def test_ceilings(fake_gpu):
    fake_gpu.elapsed = 2.0
    found = cuda.measure_ceilings("cpu", 7.0, sizes={"float32": 10, "bfloat16": 20})
    assert found.bandwidth == 7
    assert found.peak == pytest.approx({"float32": 2000 / 2e-3, "bfloat16": 16000 / 2e-3})


def test_the_copy_s_bandwidth_is_not_measured_in_a_graph(fake_gpu, monkeypatch):
    """In a CUDA graph a copy engine does it, at 2.7 TB/s of an H200's 4.3; a kernel is as fast there as outside."""
    fake_gpu.elapsed = 0.25
    copied, added = [], []
    real_copy, real_add = torch.Tensor.copy_, torch.add
    monkeypatch.setattr(torch.Tensor, "copy_", lambda *a: (copied.append(list(fake_gpu.calls)), real_copy(*a))[1])
    monkeypatch.setattr(torch, "add", lambda *a, **k: (added.append(list(fake_gpu.calls)), real_add(*a, **k))[1])
    found = cuda.measure_bandwidths("cpu", {"copy": 1000, "add": 2000})
    assert found == pytest.approx({"copy": 2 * 1000 / 0.25e-3, "add": 2 * 2000 / 0.25e-3})
    assert len(copied) == 1 + cuda.COPIES
    assert not any("capture" in calls for calls in copied)
    assert any("capture" in calls for calls in added)


@pytest.mark.usefixtures("fake_gpu")
def test_a_layer_with_every_candidate():
    rows = cuda.measure_layer(LAYER, c.candidates(), "cpu", CEILINGS)
    assert [row["pass"] for row in rows] == list(PASSES)
    for row in rows:
        ours = row["candidates"][c.OURS]
        assert ours["timer"] == "graph"
        assert 0 <= ours["error"] <= 1
        seconds = ours["ms"].median / 1000
        assert row["tflops_on_valid_taps"] == pytest.approx(LAYER.flops / seconds / 1e12, abs=0.01)
        assert row["share_of_bandwidth"] == pytest.approx(LAYER.bytes / seconds / 1e9, rel=1e-2)
        assert row["limit_us"] == pytest.approx(1e6 * max(LAYER.bytes, LAYER.flops) / 1e9, rel=1e-3)
        assert row["share_of_limit"] == pytest.approx(row["limit_us"] / seconds / 1e6, rel=1e-3)
        assert row["speedup_over_native"] == 1
        assert row["best_peer"] is not None
    assert "toeplitz bmm" in rows[1]["candidates"]
    assert "toeplitz bmm" not in rows[2]["candidates"]


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize(
    ("ours", "why"), [(broken, "times the bound"), (raising, "ValueError: no such layer"), (Moving(), "went from")]
)
def test_our_wrong_answer_gets_no_speed(ours, why):
    ways = [c.Candidate(c.OURS, ours, "ours"), c.Candidate(c.NATIVE, c.convolution, "native")]
    rows = cuda.measure_layer(LAYER, ways, "cpu", CEILINGS)
    assert why in rows[0]["wrong"]
    assert rows[0]["errors"].keys() == {c.OURS, c.NATIVE}
    assert not {"candidates", "tflops_on_valid_taps"} & rows[0].keys()
    assert "WRONG, no speed" in main.line(rows[0])


@pytest.mark.usefixtures("fake_gpu")
@pytest.mark.parametrize(
    ("ours", "error", "right"),
    [(True, 1.0, True), (True, 1.1, False), (False, 16.0, True), (False, 16.1, False), (False, float("nan"), False)],
)
def test_how_many_bounds_an_answer_may_be_off(ours, error, right):
    found = cuda.measure(ours, lambda: [lambda: None], lambda answer: error)
    assert ("ms" in found, "wrong" in found) == (right, not right)


@pytest.mark.usefixtures("fake_gpu")
def test_a_peer_that_is_wrong_or_fails_is_no_peer():
    ways = [
        c.Candidate(c.OURS, c.convolution, "ours"),
        c.Candidate("wrong", broken, "cudnn"),
        c.Candidate("failing", raising, "native"),
    ]
    row = cuda.measure_layer(LAYER, ways, "cpu", CEILINGS)[0]
    assert "times the bound" in row["candidates"]["wrong"]["wrong"]
    assert row["candidates"]["failing"]["failed"] == "ValueError: no such layer"
    assert row["best_peer"] is row["speedup_over_native"] is row["speedup_over_best_cudnn"] is None
    assert "no peer" in main.line(row)


def test_ratios_are_to_the_best_of_each_kind():
    times = {c.OURS: 1.0, c.NATIVE: 8.0, "other native": 7.0, "cudnn a": 4.0, "cudnn b": 3.0, "compiled": 2.0}
    kinds = dict(zip(times, ("ours", "native", "native", "cudnn", "cudnn", "other"), strict=True))
    results = {name: {"ms": Timing(ms, ms, ms, 1), "error": 0.1} for name, ms in times.items()}
    row = cuda.judge(LAYER, results, kinds, CEILINGS)
    assert (row["speedup_over_native"], row["speedup_over_best_cudnn"]) == (8.0, 3.0)
    assert (row["best_peer"], row["speedup_over_best_peer"]) == ("compiled", 2.0)


@pytest.mark.usefixtures("fake_gpu")
def test_the_budget_cuts_the_end_off():
    reported = []

    def measure(layer):
        return cuda.measure_layer(layer, c.candidates(compiled=False), "cpu", CEILINGS)

    assert cuda.measure_until(time.monotonic() + 60, [LAYER], measure, reported.append) == []
    assert reported[0][0]["candidates"].keys() >= {c.OURS, c.NATIVE, "cudnn channels_last benchmark"}
    strip = variants.Variant("strip", LAYER, (9, 5), {c.OURS: depthwise_conv2d, c.NATIVE: c.convolution})
    left_out = cuda.measure_until(time.monotonic() - 1, [LAYER, strip], measure, reported.append)
    assert left_out == [str(LAYER), f"strip {LAYER}"]
    assert len(reported) == 1
