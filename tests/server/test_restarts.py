"""A server that fails is restarted, and in the end given up."""

import hashlib
import json
import os
import shutil
import time

import psutil
import pytest
from server_processes import assert_nothing_left, backends_of, command_of, processes_of, shm_of, wait_until

from benchmarks.resilience.footprint import tritonserver_of
from export.repository import _is_served
from server import GaveUpError, ServerError, TritonServer

pytestmark = pytest.mark.server


def test_restart_after_a_backend_was_killed_and_after_one_hung(repository_of_processes, classify, encode, tmp_path):
    events = []
    patience = {"probe_interval": 0.5, "probe_timeout": 1.0}
    log = tmp_path / "log"
    with TritonServer(repository_of_processes, on_event=events.append, log_file=log, **patience) as server:
        addresses = server.http_url, server.grpc_url
        backends_of(server)[0].kill()
        wait_until(lambda: server.restarts == 1 and server.ready, 40, "restarted")
        assert "died; restarting" in events[0]
        assert events[1] == "the server answers again"
        assert (server.http_url, server.grpc_url) == addresses
        assert classify(server, [encode("blue")]).argmax() == 2

        for backend in backends_of(server):
            backend.suspend()
        wait_until(lambda: server.restarts == 2 and server.ready, 40, "restarted")
        assert "canary inference failed 3 times" in events[2]
        assert classify(server, [encode("red")], "http").argmax() == 0
        folder = server.launch.runtime.folder
        assert shm_of(folder.name)
        processes = [each for each in processes_of(os.getpid()) if str(folder) in command_of(each)]
        assert processes
    assert_nothing_left(processes, folder)


def test_restart_after_tritonserver_was_killed(light_repository, sleep):
    with TritonServer(light_repository) as server:
        tritonserver_of(server._process.guard.pid).kill()
        wait_until(lambda: server.restarts == 1 and server.ready, 20, "restarted")
        assert sleep(server.grpc_url, 0.0) == 0.0


def test_kill_9_of_the_guard_is_survived(light_repository, sleep):
    with TritonServer(light_repository) as server:
        guard = psutil.Process(server._process.guard.pid)
        orphans = guard.children(recursive=True)
        guard.kill()
        wait_until(lambda: server.restarts == 1 and server.ready, 40, "restarted")
        assert sleep(server.grpc_url, 0.5) == 0.5
        wait_until(lambda: not any(each.is_running() for each in orphans), 10, "the first tritonserver ended")
        folder = server.launch.runtime.folder
        processes = processes_of(server._process.guard.pid)
    assert_nothing_left(processes, folder)


def test_what_was_changed_since_the_start_is_not_served_after_a_restart(light_repository, sleep, tmp_path):
    root = shutil.copytree(light_repository, tmp_path / "models")
    code = root / "sleepy" / "1" / "model.py"
    built = code.read_bytes()
    digest = hashlib.sha256(built).hexdigest()
    (code.parent / "build.json").write_text(json.dumps({"files_sha256": {"model.py": digest}}))
    events = []
    with TritonServer(root, on_event=events.append) as server:
        code.write_bytes(built + b"# changed")
        tritonserver_of(server._process.guard.pid).kill()
        wait_until(lambda: len(events) == 2, 20, "refused")
        assert f"{code} is not what was built" in events[1]
        assert not server.ready
        code.write_bytes(built)
        wait_until(lambda: server.ready, 20, "restarted")
        assert sleep(server.grpc_url, 0.0) == 0.0


def test_a_server_holds_the_folder_that_each_build_puts_in_its_place(light_repository, tmp_path):
    root = shutil.copytree(light_repository, tmp_path / "models")
    with TritonServer(root):
        for name in ("first", "second"):
            new = shutil.copytree(root, tmp_path / name)
            root.rename(tmp_path / f"before {name}")
            new.rename(root)
            wait_until(lambda: _is_served(root), 5, "held")
    assert not _is_served(root)


@pytest.mark.parametrize("log", [None, "log"])
def test_a_private_folder_that_was_removed_is_made_anew(light_repository, sleep, tmp_path, log):
    events = []
    with TritonServer(light_repository, on_event=events.append, log_file=log and tmp_path / log) as server:
        lost = server.launch.runtime.folder
        shutil.rmtree(lost)
        wait_until(lambda: events, 5, "told")
        assert events == [f"warning: {lost} was removed: no model can be loaded until the server restarts"]
        time.sleep(1.5)  # it is told once
        tritonserver_of(server._process.guard.pid).kill()
        wait_until(lambda: server.restarts == 1 and server.ready, 20, "restarted")
        assert sleep(server.grpc_url, 0.0) == 0.0
        assert events[2] == f"the server's private folder {lost} was removed: it is made anew"
        folder = server.launch.runtime.folder
        assert (folder / "tritonserver.log").exists() == (log is None)
        processes = processes_of(server._process.guard.pid)
    assert not lost.exists()
    assert_nothing_left(processes, folder)


def test_gives_up_in_the_end(light_repository):
    with TritonServer(light_repository, max_restarts=0) as server:
        tritonserver_of(server._process.guard.pid).kill()
        with pytest.raises(GaveUpError, match=r"failed 1 times .*tritonserver"):
            server.wait(30)
        assert not server.ready


def test_a_server_that_was_stopped_is_not_started_again(light_repository):
    with TritonServer(light_repository) as server:
        assert server.ready
        assert not server.wait(0.1)
    assert server.wait()
    assert not server.ready
    server.stop()
    with pytest.raises(ServerError, match="started before"):
        server.start()
