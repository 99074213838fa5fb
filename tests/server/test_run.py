"""When a server counts as ready, as hung, as dead and as merely busy; and when the supervisor restarts or gives up."""

import errno
import itertools
import re
import threading
import time
from types import SimpleNamespace

import pytest

from server import GaveUpError, InstallationError, ServerError, StartError, TritonServer
from server import run as run_module
from server.canary import CanaryError, CanaryRefusedError, CanaryTimeoutError
from server.locate import Installation
from server.private_folder import MARK
from server.process import ServerProcess
from server.restarts import Restarts
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


TIMEOUT, REFUSED = CanaryTimeoutError("no answer in 1 s"), CanaryError("HTTP 500")
UNKNOWN = CanaryError("x")
TURNED_AWAY = CanaryRefusedError("HTTP 503: Exceeds maximum queue size")


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

    monkeypatch.setattr("server.memory.VMSTAT", tmp_path / "vmstat")
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


def test_a_thousand_failures_are_rested_from_as_ten_are():
    restarts = Restarts(5000, window=1e9)
    assert [restarts.rest("killed") for _ in range(1100)][-1] == 30


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


@pytest.fixture
def supervised(monkeypatch, tmp_path, tmp_path_factory):
    """supervised(outcomes, ...): a TritonServer whose runs end as listed, with nothing started."""
    (tmp_path / "model" / "1").mkdir(parents=True)
    (tmp_path / "model" / "config.pbtxt").write_text("")
    (tmp_path / "model" / "1" / "build.json").write_text('{"files_sha256": {}}')

    private = tmp_path_factory.mktemp("private")
    (private / MARK).touch()

    class FakeRuntime:
        folder = private
        repository = SimpleNamespace(path=tmp_path)
        warnings = staticmethod(tuple)
        lost = False

        def __init__(self, *arguments):
            self.removed = False

        def remove(self):
            self.removed = True

    monkeypatch.setattr("server.supervisor.Runtime", FakeRuntime)
    monkeypatch.setattr("server.supervisor.find_tritonserver", lambda: Installation(tmp_path / "bin" / "tritonserver"))

    def build(outcomes, **options):
        server = TritonServer(tmp_path, **options)
        left = iter(outcomes)

        def run_once():
            outcome = next(left, None)
            if outcome is None:
                server._settled.set()
                server._stopping.wait(10)
                return "stopped"
            if isinstance(outcome, Exception):
                raise outcome
            server._settled.set()
            return outcome

        server._run_once = run_once
        return server

    return build


def test_the_first_failure_is_the_callers(supervised):
    server = supervised([StartError("no")])
    with pytest.raises(StartError, match="no"):
        server.start()
    assert server._runtime.removed
    with pytest.raises(StartError), supervised([StartError("no")]):
        pass


def test_ctrl_c_while_it_drains_leaves_nothing(supervised):
    server = supervised([])

    def interrupted(seconds):
        del server._finished.wait
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), server:
        server._finished.wait = interrupted
    assert server._at_once.is_set()
    assert server._finished.is_set()
    assert server._runtime.removed


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOSPC, "make room there, or name another in TMPDIR"),
        (errno.EFBIG, r"raise the limit on a file's size \(ulimit -f\)"),
        (errno.EIO, "fix that, or name another in TMPDIR"),
    ],
)
def test_no_room_for_the_private_folder(supervised, monkeypatch, code, remedy):
    def full(*arguments):
        raise OSError(code, "what it is", "/tmp/widefield")

    monkeypatch.setattr("server.supervisor.Runtime", full)
    expected = rf"folder cannot be made \(.*what it is: '/tmp/widefield'\): {remedy}$"
    with pytest.raises(InstallationError, match=expected):
        supervised([]).start()


def test_a_bug_of_the_supervisor_is_told(supervised):
    with pytest.raises(ServerError, match="the supervisor failed: KeyError"):
        supervised([KeyError("x")]).start()


def test_a_bug_of_the_supervisor_ends_no_server_that_was_ready(supervised):
    events = []
    with supervised(["died", KeyError("x")], on_event=events.append) as server:
        assert not server.wait(1.3)
    assert events == ["died; restarting", "the supervisor failed: KeyError: 'x'; restarting in 1 s"]


def test_restarts_and_backs_off(supervised):
    events, pauses = [], []
    server = supervised(["died", StartError("port"), OSError("no memory")], on_event=events.append)
    real = server._stopping.wait
    server._stopping.wait = lambda seconds: pauses.append(seconds) if seconds != 10 else real(10)
    with server:
        assert not server.wait(0.3)
        assert server.restarts == 3
    assert events == ["died; restarting", "port; restarting in 1 s", "no memory; restarting in 3 s"]
    assert pauses == [0, 1, 3]


def test_the_rest_between_restarts_is_bounded():
    restarts = Restarts(limit=8, window=300.0)
    assert [restarts.rest("died") for _ in range(8)] == [0, 1, 3, 7, 15, 30, 30, 30]


def test_restarts_are_logged_where_nobody_asked(supervised, caplog):
    with supervised(["died at 5 % of its work"]) as server:
        assert not server.wait(0.3)
    assert [(each.name, each.getMessage()) for each in caplog.records] == [
        ("server", "died at 5 % of its work; restarting")
    ]


def test_a_listener_that_fails_ends_nothing(supervised, caplog):
    def broken(event):
        raise BrokenPipeError

    with supervised(["died"], on_event=broken) as server:
        assert not server.wait(0.3)
        assert server.restarts == 1
    assert [each.getMessage() for each in caplog.records] == ["on_event failed at: died; restarting"]


def test_gives_up(supervised, tmp_path):
    server = supervised(["first", "second", "third"], max_restarts=1, log_file=tmp_path / "log")
    expected = r"failed 2 times in 300 s, at last because: second \(log: .*/log\)"
    with pytest.raises(GaveUpError, match=expected), server:
        server.wait(5)


def test_old_failures_are_forgotten(supervised, monkeypatch):
    monkeypatch.setattr("server.supervisor.RESTART_WINDOW", 0.0)
    server = supervised(["one", "two", "three"], max_restarts=1)
    server._stopping.wait = (lambda real: lambda seconds: real(min(seconds + 0.01, 0.3)))(server._stopping.wait)
    with server:
        server.wait(0.2)
        assert server.restarts == 3


def test_stop_without_start(tmp_path):
    TritonServer(tmp_path).stop()
    assert TritonServer(tmp_path).wait()


def test_a_taken_port_is_chosen_again(monkeypatch, tmp_path):
    """Between the choice of a free port and tritonserver's bind another process may take it."""
    server = TritonServer(tmp_path)
    server._endpoints = server._choose_endpoints()
    first = server.http_url
    tries = []

    class Once(Run):
        def await_ready(self, timeout):
            tries.append(self.http)
            if len(tries) < 3:
                raise StartError("Socket '127.0.0.1:1' already in use")

        def watch(self, interval, timeout, meanwhile):
            return "died"

    class Closed:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    class Repository:
        has_canary = False

    class Private:
        repository = Repository
        log = tmp_path / "log"

    server._runtime = Private
    monkeypatch.setattr("server.supervisor.Run", Once)
    server._spawn = Closed
    assert server._run_once() == "died"
    assert tries[0] == first
    assert len(set(tries)) > 1

    tries.clear()
    fixed = TritonServer(tmp_path, http_port=1025, grpc_port=1026, metrics_port=1027)
    fixed._endpoints, fixed._runtime, fixed._spawn = server._endpoints, Private, Closed
    with pytest.raises(StartError, match="already in use"):
        fixed._run_once()
    assert len(tries) == 1
