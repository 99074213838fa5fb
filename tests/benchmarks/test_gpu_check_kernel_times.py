"""The kernel_times part of `make gpu-check` on a faked GPU and profiler."""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import harness
from benchmarks.gpu_check import kernel_times


def event(name, start, end, device=DeviceType.CUDA):
    return SimpleNamespace(name=name, device_type=device, time_range=SimpleNamespace(start=start, end=end))


@pytest.fixture
def seen(monkeypatch):
    """The events that the profiler saw."""
    events = []

    @contextmanager
    def faked(activities):
        assert activities == [ProfilerActivity.CUDA]
        yield SimpleNamespace(events=lambda: events)

    monkeypatch.setattr(kernel_times, "profile", faked)
    return events


@pytest.mark.usefixtures("fake_gpu")
def test_kernels_are_summed_by_name_and_the_gaps_are_in_the_span(seen):
    seen += [event("launch", 0, 90, DeviceType.CPU), event("pack" + "<>" * 99, 10, 12), event("conv", 13, 20)]
    seen += [event("pack" + "<>" * 99, 22, 24), event("conv", 25, 32)]
    times = kernel_times.kernel_times(lambda: None, 2)
    names = [(each["name"][:4], each["launches"], each["us"]) for each in times["kernels"]]
    assert (times["span_us"], names) == (11, [("conv", 1, 7), ("pack", 1, 2)])
    assert max(len(each["name"]) for each in times["kernels"]) == 80


@pytest.mark.usefixtures("fake_gpu", "seen")
def test_a_profiler_that_saw_nothing_fails():
    with pytest.raises(RuntimeError, match="no kernel: is CUPTI there"):
        kernel_times.kernel_times(lambda: None, 1)


def test_pytorch_s_events_have_what_is_read():
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.ones(2) + 1
    first = profiler.events()[0]
    assert (first.device_type, first.time_range.end >= first.time_range.start) == (DeviceType.CPU, True)
    assert isinstance(first.name, str)


def test_layers_passes_and_losses_are_run_and_written(fake_gpu, seen, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(kernel_times, "BATCHES", {"layers": 1, "loss": 1})
    seen.append(event("conv", 0, 5))
    kernel_times.main("cpu", 64)
    rows = json.loads((tmp_path / "kernel_times_fake_h200.json").read_text())["rows"]
    assert len(rows) == 4 * 3 + 2 * 3
    assert [row["case"] for row in rows][::6] == [
        "N   1 C  128 H  56 K 31 bfloat16 forward",
        "N   1 C  512 H  14 K 27 bfloat16 forward",
        "loss nchw none",
    ]
    assert fake_gpu.calls == ["capture", "replay", "replay"] * len(rows)
    assert "loss nhwc patch: 5.0 us; 1 conv 5.0 us" in capsys.readouterr().out
