"""Other work is told from the benchmark that ran before."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import harness

STAT = """\
cpu  900 0 900 900 0 0 0 0 0 0
cpu0 10 20 30 1000 1000 40 50 60 7 7
cpu1 9000 0 0 1000 0 0 0 0 0 0
cpu2 100 0 0 1000 0 0 0 0 0 0
intr 1 2 3
"""


@pytest.mark.parametrize(("flags", "name"), [("avx2 amx_bf16 amx_tile", "kernels_cpu_amx"), ("avx2", "kernels_cpu")])
def test_a_processor_with_amx_has_its_own_files(flags: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _: f"model name : one\nflags : fpu {flags} movbe\n")
    assert harness.name_here("kernels_cpu") == name


def test_the_cores_of_this_process_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2})
    monkeypatch.setattr(os, "sysconf", {"SC_CLK_TCK": 100}.__getitem__)
    monkeypatch.setattr(Path, "read_text", lambda _: STAT)
    assert harness.busy_s() == pytest.approx((10 + 20 + 30 + 40 + 50 + 60 + 100) / 100)


@pytest.mark.parametrize(("used", "words"), [(0.1, None), (0.5, "other work on 0.5 of ")])
def test_the_benchmark_before_is_not_other_work(
    used: float, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    times = iter([100.0, 100.0 + used * harness.SAMPLE_S])
    monkeypatch.setattr(harness, "busy_s", lambda: next(times))
    clock = iter([7.0, 7.0 + harness.SAMPLE_S])
    # not time.monotonic itself: other threads of the test run look at it too
    monkeypatch.setattr(harness, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda _: None))
    said = harness.other_work_warning()
    assert (said and said[: len(words or "")]) == words
