"""Phases and Poisson arrivals."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.shapes import Phase, arrivals, plan, whole_users


def outline(phases: list[Phase]) -> list[tuple[float, float, float]]:
    return [(phase.level, round(phase.start, 6), round(phase.end, 6)) for phase in phases]


def test_shapes() -> None:
    assert outline(plan("steady", 8, 10)) == [(8, 0, 10)]
    assert outline(plan("step", 8, 20, warm_up=2)) == [(2, 0, 2), (2, 2, 7), (4, 7, 12), (6, 12, 17), (8, 17, 22)]
    assert outline(plan("step", 8, 10, levels=[5, 1])) == [(5, 0, 5), (1, 5, 10)]
    assert outline(plan("spike", 2, 10, warm_up=1, peak=3)) == [(2, 0, 1), (2, 1, 5), (6, 5, 7), (2, 7, 11)]
    soak = plan("soak", 3, 120)
    assert len(soak) == 12
    assert {phase.level for phase in soak} == {3}
    assert soak[-1].end == pytest.approx(120)
    assert [phase.measured for phase in plan("steady", 8, 10, warm_up=2)] == [False, True]
    with pytest.raises(ValueError, match="'wave'"):
        plan("wave", 1, 1)


def test_users_are_whole() -> None:
    assert outline(whole_users(plan("step", 9, 4), 2)) == [(2, 0, 1), (4, 1, 2), (7, 2, 3), (9, 3, 4)]
    with pytest.raises(ValueError, match="step 1 has 1 users: give at least 2, one for each protocol, with --users"):
        whole_users(plan("step", 4, 4), 2)


def test_arrivals_are_poisson() -> None:
    """Two senders of 30 and 70 %: counts by second have the phase's rate as mean and as variance."""
    phases = [Phase("low", 20, 0, 300), Phase("high", 60, 300, 300)]
    due = sorted(time for share, seed in ((0.3, 1), (0.7, 2)) for time in arrivals(phases, share, random.Random(seed)))
    assert 0 < due[0] < due[-1] < 600
    for phase in phases:
        counts = [0] * 300
        for time in due:
            if phase.start <= time < phase.end:
                counts[int(time - phase.start)] += 1
        mean = sum(counts) / 300
        variance = sum((count - mean) ** 2 for count in counts) / 299
        assert mean == pytest.approx(phase.level, rel=0.05)
        assert variance == pytest.approx(phase.level, rel=0.3)


AFTER_THE_LAST_PHASE = """
from types import SimpleNamespace as Of
from locust.runners import LocalRunner, MasterRunner
from loadtest import hooks, schedule

for kind, rate in ((MasterRunner, 20), (MasterRunner, None), (LocalRunner, 20), (LocalRunner, None)):
    test, done = object.__new__(hooks.LoadTest), []
    shape = dict(shape="steady", rate=rate, num_users=3, levels=[], peak=None, senders=None)
    test.options = Of(**shape, seconds=1.0, run_time=None, warm_up=0.0, request_timeout=1.0, expect_workers=2)
    runner = object.__new__(kind)
    runner.stop = lambda: done.append("stop")
    test.environment = Of(runner=runner, user_classes=[object], stop_timeout=0.0)
    hooks.check_shape = lambda options: None
    test._plan()
    planned = test.environment.shape_class
    planned.get_run_time = lambda: 1.5
    schedule.gevent.sleep = done.append
    assert planned.tick() is None
    print(*done)
"""


def test_workers_that_began_later_than_their_master_send_to_the_end() -> None:
    """So does the sender of a rate in their process, which may be late with its last requests; a closed loop ends."""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", AFTER_THE_LAST_PHASE], cwd=root, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["2.0 stop", "2.0 stop", "0.5 stop", "0.0 stop"], done.stderr
