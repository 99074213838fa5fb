"""When a server counts as ready, as hung, as dead and as merely busy."""

import itertools
import re
import threading
import time
from types import SimpleNamespace

import pytest

from server import StartError
from server import run as run_module
from server.canary import CanaryBusyError, CanaryError
from server.process import ServerProcess
from server.run import Run


class FakeProcess:
    def __init__(self, exit_codes=(), dead=(), output=""):
        self.exit_codes, self.dead = list(exit_codes), list(dead)
        self.output = lambda: output
        self.remembered = False

    def exit_code(self):
        return self.exit_codes.pop(0) if self.exit_codes else None

    def dead_backend(self):
        return self.dead.pop(0) if self.dead else None

    def remember_backends(self):
        self.remembered = True


ADDRESS = "127.0.0.1:1"


@pytest.fixture
def make(monkeypatch):
    """make(canaries, counts, ...) -> a Run whose canary raises or passes as listed; at the list's end it is stopped.

    The thread that watches another test's server asks through the same module: it keeps the real functions.
    """
    monkeypatch.setattr(run_module, "TICK", 0.001)
    monkeypatch.setattr(run_module, "POLL", 0.001)

    def answer_here(name, fake):
        real = getattr(run_module, name)
        monkeypatch.setattr(run_module, name, lambda http, *rest: (fake if http == ADDRESS else real)(http, *rest))

    def build(canaries=(), counts=(), process=None, ready=True, has_canary=True):
        stopping = threading.Event()
        outcomes, answered = iter(canaries), iter(counts)

        def canary(address, model, timeout):
            outcome = next(outcomes, None)
            if outcome == "stop":
                stopping.set()
            elif outcome is not None:
                raise outcome

        def count(address, model, timeout):
            value = next(answered, 0)
            if isinstance(value, Exception):
                raise value
            return value

        answer_here("classify_canary", canary)
        answer_here("success_count", count)
        answer_here("is_ready", lambda address, timeout: ready)
        return Run(process or FakeProcess(), ADDRESS, has_canary, stopping)

    return build


TIMEOUT, REFUSED = CanaryBusyError("no answer in 1 s"), CanaryError("HTTP 500")
UNKNOWN = CanaryError("x")
TURNED_AWAY = CanaryBusyError("HTTP 503: Exceeds maximum queue size")


def test_ready_after_a_real_inference(make):
    run = make()
    run.await_ready(5)
    assert run.process.remembered


def test_not_ready_when_the_first_inference_fails(make):
    run = make([REFUSED])
    with pytest.raises(StartError, match="the first inference failed, HTTP 500"):
        run.await_ready(5)
    assert not run.process.remembered


def test_ended_while_starting(make):
    run = make(process=FakeProcess([None, 1], output='E1123 1 1 x.cc:1] "no memory"\n'), ready=False)
    with pytest.raises(StartError, match="tritonserver ended with code 1: no memory"):
        run.await_ready(5)


def test_never_ready(make):
    with pytest.raises(StartError, match=r"not ready after 0\.05 s \(give it longer with --start-timeout, .*\)$"):
        make(ready=False).await_ready(0.05)


def test_stopped_while_starting(make):
    run = make(ready=False)
    run.stopping.set()
    run.await_ready(5)
    assert not run.process.remembered


def test_stopped_while_the_first_inference_waits(make, monkeypatch):
    run = make()

    def ended(address, model, timeout):
        run.stopping.set()
        raise REFUSED

    monkeypatch.setattr(run_module, "classify_canary", ended)
    run.await_ready(5)
    assert not run.process.remembered


def test_without_a_canary_model_readiness_is_asked(make):
    make([REFUSED], has_canary=False).await_ready(5)
    reason = make(ready=False, has_canary=False).watch(0, 1)
    assert reason == "the canary inference failed 3 times, the server does not say ready"


@pytest.mark.parametrize(
    ("canaries", "counts", "reason"),
    [
        ([None, None, "stop"], [], "stopped"),
        ([REFUSED] * 3, [], "the canary inference failed 3 times, HTTP 500"),
        ([TIMEOUT] * 3, [], "the canary inference failed 3 times, no answer in 1 s"),
        ([REFUSED, REFUSED, None, REFUSED, REFUSED, "stop"], [], "stopped"),  # not in a row
        ([TIMEOUT] * 5 + ["stop"], range(1, 9), "stopped"),  # busy: others are answered meanwhile
        ([TURNED_AWAY] * 5 + ["stop"], range(1, 9), "stopped"),  # a full queue, and it moves
        ([TURNED_AWAY] * 3, [5] * 9, "the canary inference failed 3 times, HTTP 503: Exceeds maximum queue size"),
        ([REFUSED] * 3, range(1, 9), "the canary inference failed 3 times, HTTP 500"),  # an error is no busyness
        ([TIMEOUT] * 3, [UNKNOWN] * 9, "the canary inference failed 3 times, no answer in 1 s"),
        # who asks in vain first knows of no answers since
        (
            [TIMEOUT] * 3 + ["stop"],
            [CanaryError("x"), 5, 5, 5],
            "the canary inference failed 3 times, no answer in 1 s",
        ),
        (
            [TIMEOUT] * 3 + ["stop"],
            [5, CanaryError("x"), 5, 5],
            "the canary inference failed 3 times, no answer in 1 s",
        ),
    ],
)
def test_watch(make, canaries, counts, reason):
    assert make(canaries, counts).watch(0, 1) == reason


def test_a_failure_is_asked_about_again_at_once(make, monkeypatch):
    """Three in a row mean a restart: not three intervals later."""
    here, looks = threading.get_ident(), itertools.count()
    real = time.monotonic

    def monotonic():  # a second passes with each look
        return next(looks) if threading.get_ident() == here else real()

    monkeypatch.setattr(run_module, "time", SimpleNamespace(monotonic=monotonic))
    assert "failed 3 times" in make([REFUSED] * 3).watch(100, 1)
    assert next(looks) < 200


def test_watch_sees_deaths(make):
    assert make(process=FakeProcess([None, None, -9])).watch(60, 1) == "tritonserver ended with code -9"
    assert make(process=FakeProcess(dead=[None, "backend 7 died"])).watch(60, 1) == "backend 7 died"


@pytest.fixture
def kills(monkeypatch, tmp_path):
    """kills(count): so many processes were killed for memory; None: the kernel does not count them."""

    def write(count):
        counted = "" if count is None else f"oom_kill {count}\n"
        (tmp_path / "vmstat").write_text(f"pgfault 7\n{counted}oom_kill_x 9\n")

    monkeypatch.setattr("server.run.VMSTAT", tmp_path / "vmstat")
    return write


MEMORY = r" \(the kernel has killed a process for lack of memory: raise the memory limit, or lower max_pixels or .*\)$"


@pytest.mark.parametrize(
    ("death", "said"),
    [({"exit_codes": [137]}, "tritonserver ended with code 137"), ({"dead": ["backend 7 died"]}, "backend 7 died")],
)
def test_a_death_for_lack_of_memory_is_told(make, kills, death, said):
    kills(3)
    run = make(process=FakeProcess(**death))
    kills(4)
    assert re.match(said + MEMORY, run.watch(60, 1))
    assert make(process=FakeProcess(**death)).watch(60, 1) == said, "that was before it"


def test_a_start_without_enough_memory_is_told(make, kills):
    kills(0)
    for run in (make(process=FakeProcess([137])), make([CanaryError("connection reset")])):
        kills(1)
        with pytest.raises(StartError, match=MEMORY):
            run.await_ready(5)


@pytest.mark.parametrize("before", [None, 3])
def test_what_was_killed_before_a_good_canary_is_no_reason(make, kills, before):
    """The kernel counts for the whole machine."""
    kills(before)
    run = make(process=FakeProcess([None, 137]))
    kills(before and before + 1)
    assert run.watch(0, 1) == "tritonserver ended with code 137"


def backend(pid, running=True, status="sleeping"):
    return SimpleNamespace(pid=pid, is_running=lambda: running, status=lambda: status)


@pytest.mark.parametrize("gone", [{"running": False}, {"status": "zombie"}])
def test_a_backend_that_gave_way_to_another_has_not_died(monkeypatch, gone):
    """A model was loaded anew: as many live as before."""
    process = object.__new__(ServerProcess)
    process.processes = [backend(10), backend(11), backend(12, **gone)]
    living = [backend(10), backend(11), backend(12, **gone), backend(13)]  # tritonserver first
    monkeypatch.setattr(process, "_descendants", lambda: living)
    assert process.dead_backend() is None
    assert [each.pid for each in process.processes] == [10, 11, 13]
    living[-1] = process.processes[-1] = backend(13, **gone)
    assert process.dead_backend() == "backend process 13 died"
    living[0] = process.processes[0] = backend(10, **gone)
    assert process.dead_backend() is None, "they end with tritonserver, whose exit code is waited for"
