"""Histograms: percentiles, phases, what workers send."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest

from loadtest.recorder import Cell, Recorder, bucket, count_within, middle, percentile
from loadtest.results import summarise
from loadtest.shapes import plan


def test_percentiles_are_within_half_a_per_cent() -> None:
    source = random.Random(0)
    times = [source.lognormvariate(3, 1.5) for _ in range(5000)]
    cell = Cell()
    for time in times:
        cell.add(time, 0.1, None)
    for part in (0.01, 0.5, 0.9, 0.99, 0.999):
        exact = np.percentile(times, 100 * part, method="inverted_cdf")
        assert cell.percentile(part) == pytest.approx(exact, rel=0.0051)
    assert cell.max_ms == max(times)
    one = Cell()
    one.add(100.0, 0.1, None)  # below the middle of its bucket
    assert one.percentile(0.99) == one.max_ms == 100
    assert cell.total_ms == pytest.approx(sum(times))
    assert count_within(cell.latency, 20) == pytest.approx(sum(time <= 20 for time in times), rel=0.02)


def test_of_a_thousand_the_999th() -> None:
    """float("99.9") / 100, as from an objective, is a little more than 0.999."""
    cell = Cell()
    for milliseconds in [10.0] * 999 + [5000.0]:
        cell.add(milliseconds, 0.1, None)
    for part in (0.999, float("99.9") / 100):
        assert cell.percentile(part) == pytest.approx(10, rel=0.005)


def test_nothing_counted() -> None:
    assert Cell().percentile(0.5) is None
    assert percentile(Cell().late, 0.99) is None
    assert bucket(0.0) == bucket(-1.0)
    assert middle(bucket(0.0)) == pytest.approx(1e-3, rel=0.01)


def test_phases_and_workers_add_up() -> None:
    phases = plan("spike", 10, 10, warm_up=2)  # warm-up to 2, before to 6, spike to 8, after to 12
    workers = [Recorder(phases), Recorder(phases)]
    workers[0].record(1.9, "HTTP", 5, 0.1, None)
    workers[0].record(2.0, "HTTP", 5, 0.1, None)
    workers[1].record(2.5, "HTTP", 3, 0.1, None)
    workers[1].record(7.9, "HTTP", 10, 0.1, None)
    for worker in workers:
        worker.record(7.0, "HTTP", 1, 0.1, "refused")
    workers[1].record(12.0, "HTTP", 5, 0.1, None)  # behind the last phase
    master = Recorder(phases)
    for worker in workers:
        master.merge(json.loads(json.dumps(worker.take())))
        assert worker.take() == []
    found = {key[1]: cell for key, cell in master.cells.items() if key[0] == "phase"}
    assert {index: cell.latency.total() for index, cell in found.items()} == {0: 1, 1: 2, 2: 1}
    assert found[2].errors == {"refused": 2}
    assert [(cell.total_ms, cell.max_ms, cell.sent, cell.finished) for cell in found.values()] == [
        (5, 5, 1, 1),
        (8, 5, 2, 2),
        (10, 10, 3, 1),
    ]
    assert [cell.late.total() for cell in found.values()] == [1, 2, 3]
    assert {key[1] for key in master.cells if key[0] == "window"} == {1, 2, 7}


def test_windows_of_a_long_test() -> None:
    soak = Recorder(plan("soak", 1, 3600))
    soak.record(61.0, "HTTP", 5, 0.1, None)
    assert soak.window == 30
    assert ("window", 2, "HTTP") in soak.cells
    phase = plan("steady", 1, math.inf)
    assert Recorder(phase).window == 1


def test_what_falls_behind_counts_when_it_happens() -> None:
    """Requests due in the first phase but sent or answered after it are not load or throughput of the first."""
    phases = plan("spike", 10, 10)  # before to 4, spike to 6, after to 10
    recorder = Recorder(phases)
    recorder.record(3.0, "HTTP", 500.0, 1.0, None)
    recorder.record(3.0, "HTTP", 2500.0, 1500.0, None)
    recorder.record(3.0, "HTTP", 9000.0, 8000.0, None)
    recorder.record(3.0, "HTTP", 100.0, 1.0, "refused")
    cells = [recorder.cells.get(("phase", index, "HTTP"), Cell()) for index in range(3)]
    assert [cell.latency.total() for cell in cells] == [3, 0, 0]
    assert [cell.sent for cell in cells] == [2, 1, 0]
    assert [cell.finished for cell in cells] == [1, 1, 0]


def test_a_stall_is_in_the_windows_of_the_result() -> None:
    """Answers from 0 to 3 s and from 8 to 10 s: if windows were missing, a chart would draw the last value across."""
    recorder = Recorder(plan("steady", 2, 10))
    for due in (0.1, 1.2, 2.9, 8.0, 9.5):
        recorder.record(due, "HTTP", 5.0, 0.1, None)
    options = SimpleNamespace(rate=None, shape=None, model="classifier", images=None, null_rate=None)
    kind = SimpleNamespace(request_type="HTTP", images=[b"a"])
    test = SimpleNamespace(
        options=options, kinds=[kind], phases=recorder.phases, recorder=recorder, server=[], slo=None
    )
    test.ended, test.address = 10.3, lambda: "box"
    result = summarise(test)  # type: ignore[arg-type]
    assert result["window_s"] == 1
    assert [window["from_s"] for window in result["windows"]] == list(range(10))
    assert [window["finished"] for window in result["windows"]] == [1, 1, 1, 0, 0, 0, 0, 0, 1, 1]
    assert result["windows"][4]["p50_ms"] is None
    assert result["complete"]
    test.ended = 9.5
    assert not summarise(test)["complete"]  # type: ignore[arg-type]
    test.ended = 10.3
    test.phases = plan("spike", 2, 6)  # 2.4, 1.2 and 2.4 s are a little more than 6
    assert len(summarise(test)["windows"]) == 6  # type: ignore[arg-type]
    test.ended = None
    assert summarise(test)["windows"] == []  # type: ignore[arg-type]
