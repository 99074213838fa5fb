"""When the supervisor restarts a server, rests and gives up; and what it leaves."""

import errno
from types import SimpleNamespace

import pytest

from server import GaveUpError, InstallationError, ServerError, StartError, TritonServer
from server.locate import Installation
from server.private_folder import MARK
from server.restarts import Restarts
from server.run import Run


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

    monkeypatch.setattr("server.launch.Runtime", FakeRuntime)
    monkeypatch.setattr("server.launch.find_tritonserver", lambda: Installation(tmp_path / "bin" / "tritonserver"))

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
    assert server.launch.runtime.removed
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
    assert server.launch.runtime.removed


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

    monkeypatch.setattr("server.launch.Runtime", full)
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


def test_a_thousand_failures_are_rested_from_as_ten_are():
    restarts = Restarts(5000, window=1e9)
    assert [restarts.rest("killed") for _ in range(1100)][-1] == 30


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
    server.launch.choose_endpoints()
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

    server.launch.runtime = Private
    monkeypatch.setattr("server.supervisor.Run", Once)
    server.launch.spawn = Closed
    assert server._run_once() == "died"
    assert tries[0] == first
    assert len(set(tries)) > 1

    tries.clear()
    fixed = TritonServer(tmp_path, http_port=1025, grpc_port=1026, metrics_port=1027)
    fixed.launch.endpoints, fixed.launch.runtime, fixed.launch.spawn = server.endpoints, Private, Closed
    with pytest.raises(StartError, match="already in use"):
        fixed._run_once()
    assert len(tries) == 1
