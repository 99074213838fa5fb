"""A real tritonserver's life: proof before ready, restarts, drains; and that nothing is left of it, however it ends."""

import concurrent.futures
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from server_models import in_process

from benchmarks.resilience.footprint import tritonserver_of
from server import GaveUpError, OptionError, PortInUseError, ServerError, StartError, TritonServer
from server.backends import build as backends
from server.repository import replaced

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[2]


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not after {seconds} s: {what}"
        time.sleep(0.05)


def processes_of(pid):
    """Guard, tritonserver, backend processes."""
    return psutil.Process(pid).children(recursive=True)


def command_of(process):
    """Empty for one that has just ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # a zombie too
        return ""


def backends_of(server):
    """The processes of the server's Python models; several servers may run under this process."""
    children = [(each, command_of(each)) for each in processes_of(os.getpid())]
    folder = str(server._runtime.folder)
    return [each for each, command in children if "triton_python_backend_stub" in command and folder in command]


def shm_of(prefix):
    return list(Path("/dev/shm").glob(f"{prefix}*"))


@pytest.fixture
def cli(repository):
    """Starts `python -m server` on free ports, returns the process once it is ready; kills what is left."""
    started = []

    def start(*arguments, wait=True, models=repository):
        command = [sys.executable, "-m", "server", "--model-repository", str(models)]
        command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", *arguments]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        if wait:
            lines = [process.stdout.readline() for _ in range(4)]
            assert lines[0].startswith("  HTTP     http://127.0.0.1:"), process.stderr.read()
            assert "python -m client classify IMAGE --url 127.0.0.1:" in lines[3]
            process.grpc_url = lines[1].split()[1]
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def assert_nothing_left(processes, folder):
    wait_until(lambda: not any(each.is_running() and each.status() != "zombie" for each in processes), 20, "processes")
    wait_until(lambda: not folder.exists(), 5, "the private folder")
    assert not shm_of(folder.name)


def commands_of(processes):
    return " ".join(command_of(each) for each in processes)


def folder_of(processes):
    """The private folder of a server, as its backends' command line tells it."""
    text = commands_of(processes)
    start = text.index("/widefield-")
    return Path(text[: text.index("/", start + 1)].split("=")[-1].split(" ")[-1])


def test_restart_after_a_backend_was_killed_and_after_one_hung(repository_of_processes, classify, encode, tmp_path):
    events = []
    patience = {"probe_interval": 0.5, "probe_timeout": 1.0}
    log = tmp_path / "log"
    with TritonServer(repository_of_processes, on_event=events.append, log_file=log, **patience) as server:
        addresses = server.http_url, server.grpc_url
        backends_of(server)[0].kill()
        wait_until(lambda: server.restarts == 1 and server.ready, 40, "restarted")
        assert "died; restarting" in events[0]
        assert (server.http_url, server.grpc_url) == addresses
        assert classify(server, [encode("blue")]).argmax() == 2

        for backend in backends_of(server):
            backend.suspend()
        wait_until(lambda: server.restarts == 2 and server.ready, 40, "restarted")
        assert "canary inference failed 3 times" in events[1]
        assert classify(server, [encode("red")], "http").argmax() == 0
        folder = server._runtime.folder
        assert shm_of(folder.name)
        processes = [each for each in processes_of(os.getpid()) if str(folder) in command_of(each)]
        assert processes
    assert_nothing_left(processes, folder)


def test_gives_up_in_the_end(light_repository):
    with TritonServer(light_repository, max_restarts=0) as server:
        tritonserver_of(server._process.guard.pid).kill()
        with pytest.raises(GaveUpError, match=r"failed 1 times .*tritonserver"):
            server.wait(30)
        assert not server.ready


def test_requests_in_flight_are_answered_before_the_end(light_repository, sleep):
    with TritonServer(light_repository) as server, concurrent.futures.ThreadPoolExecutor(2) as pool:
        request = pool.submit(sleep, server.grpc_url, 2.5)
        time.sleep(0.7)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun > 1.0
        assert request.result(0.1) == 2.5


@pytest.mark.parametrize("address", ["http_url", "grpc_url", "metrics_url"])
def test_before_the_start_there_is_no_address(tmp_path, address):
    with pytest.raises(ServerError, match="not started: use it in a with statement"):
        getattr(TritonServer(tmp_path), address)


@pytest.mark.parametrize(
    "option", ["drain_seconds", "max_restarts", "start_timeout", "probe_interval", "probe_timeout"]
)
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_no_number_is_negative_or_without_end(option, value):
    with pytest.raises(OptionError, match=f"--{option.replace('_', '-')} is {value:g}: give"):
        TritonServer("models", **{option: value})


def test_a_drain_ends_after_its_time(light_repository, sleep):
    with TritonServer(light_repository, drain_seconds=1) as server, concurrent.futures.ThreadPoolExecutor(2) as pool:
        request = pool.submit(sleep, server.grpc_url, 60)
        time.sleep(0.7)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 12
        assert request.exception(10) is not None


def test_restart_after_tritonserver_was_killed(light_repository, sleep):
    with TritonServer(light_repository) as server:
        tritonserver_of(server._process.guard.pid).kill()
        wait_until(lambda: server.restarts == 1 and server.ready, 20, "restarted")
        assert sleep(server.grpc_url, 0.0) == 0.0


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


def test_a_server_that_was_stopped_is_not_started_again(light_repository):
    with TritonServer(light_repository) as server:
        assert server.ready
        assert not server.wait(0.1)
    assert server.wait()
    assert not server.ready
    server.stop()
    with pytest.raises(ServerError, match="started before"):
        server.start()


def test_sigterm_leaves_nothing(cli, repository_of_processes):
    process = cli(models=repository_of_processes)
    processes = processes_of(process.pid)
    folder = folder_of(processes)
    assert len(processes) == 4  # guard, tritonserver, two backend processes
    assert shm_of(folder.name)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=40)
    assert process.returncode == 0
    assert errors.splitlines()[-1] == "server: stopped"
    assert "NVML" not in errors
    assert_nothing_left(processes, folder)


HANGUP = pytest.param(
    signal.SIGHUP,
    marks=pytest.mark.skipif(
        signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, reason="the tests were started by nohup"
    ),
)


@pytest.mark.parametrize("number", [signal.SIGTERM, HANGUP])
def test_a_signal_waits_for_requests_in_flight(cli, light_repository, sleep, number):
    process = cli(models=light_repository)
    processes = processes_of(process.pid)
    folder = folder_of(processes)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        request = pool.submit(sleep, process.grpc_url, 3)
        time.sleep(0.7)
        process.send_signal(number)
        assert request.result(20) == 3
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert_nothing_left(processes, folder)


def test_kill_9_of_the_supervisor_leaves_nothing(cli, light_repository):
    process = cli(models=light_repository)
    processes = processes_of(process.pid)
    folder = folder_of(processes)
    process.kill()
    process.wait()
    assert_nothing_left(processes, folder)


def test_kill_9_of_the_guard_is_survived(light_repository, sleep):
    with TritonServer(light_repository) as server:
        guard = psutil.Process(server._process.guard.pid)
        orphans = guard.children(recursive=True)
        guard.kill()
        wait_until(lambda: server.restarts == 1 and server.ready, 40, "restarted")
        assert sleep(server.grpc_url, 0.5) == 0.5
        wait_until(lambda: not any(each.is_running() for each in orphans), 10, "the first tritonserver ended")
        folder = server._runtime.folder
        processes = processes_of(server._process.guard.pid)
    assert_nothing_left(processes, folder)


def assert_ends(process, number, seconds):
    """At the signal, with all that it has started."""
    processes = processes_of(process.pid)
    folder = folder_of(processes)
    process.send_signal(number)
    process.communicate(timeout=seconds)
    assert process.returncode == 0
    assert_nothing_left(processes, folder)


def test_ctrl_c_while_starting_and_twice(cli):
    process = cli(wait=False)
    wait_until(lambda: "/widefield-" in commands_of(processes_of(process.pid)), 20, "tritonserver started")
    assert_ends(process, signal.SIGINT, 30)


def test_a_second_ctrl_c_does_not_wait(cli, light_repository, sleep):
    process = cli(models=light_repository)
    processes = processes_of(process.pid)
    folder = folder_of(processes)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        request = pool.submit(sleep, process.grpc_url, 60)
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        time.sleep(1.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
        assert request.exception(5) is not None
    assert_nothing_left(processes, folder)


@pytest.fixture
def hanging_repository(light_repository, tmp_path):
    """Its first inference takes as long as the test lets it: until the file `hang` beside it is gone."""
    root = shutil.copytree(light_repository, tmp_path / "models")
    model = (root / "sleepy").rename(root / "classifier")
    text = (model / "config.pbtxt").read_text().replace('"sleepy"', '"classifier"').replace('"seconds"', '"image"')
    (model / "config.pbtxt").write_text(text.replace("TYPE_FP32", "TYPE_STRING", 1))
    in_process(model)
    (tmp_path / "hang").touch()
    (model / "1" / "model.py").write_text(f"""
import os, time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        while os.path.exists({str(tmp_path / "hang")!r}):
            open({str(tmp_path / "hangs")!r}, "w").close()
            time.sleep(0.1)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("slept", np.ones((1, 1), np.float32))]) for _ in requests]
""")
    return root


def test_sigterm_does_not_wait_for_the_first_inference(cli, hanging_repository, tmp_path):
    process = cli(wait=False, models=hanging_repository)
    wait_until((tmp_path / "hangs").exists, 20, "the canary waits")
    assert_ends(process, signal.SIGTERM, 20)


def test_a_stop_does_not_wait_for_the_first_inference_after_a_restart(hanging_repository, tmp_path):
    (tmp_path / "hang").unlink()
    with TritonServer(hanging_repository) as server:
        tritonserver_of(server._process.guard.pid).kill()
        (tmp_path / "hang").touch()
        wait_until((tmp_path / "hangs").exists, 20, "the canary waits")
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 20


def test_a_second_ctrl_c_does_not_wait_for_a_canary(cli, hanging_repository, tmp_path):
    (tmp_path / "hang").unlink()
    process = cli("--probe-interval", "0.1", "--probe-timeout", "60", models=hanging_repository)
    (tmp_path / "hang").touch()
    wait_until((tmp_path / "hangs").exists, 20, "the canary waits")
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_busy_port(server, repository):
    port = int(server.http_url.rsplit(":", 1)[1])
    with pytest.raises(PortInUseError, match=rf"port {port} is in use by tritonserver \(pid \d+\).*--http-port"):
        TritonServer(repository, http_port=port).start()


def test_a_repository_whose_path_bash_would_split(light_repository, tmp_path, sleep):
    folder = tmp_path / "my models; echo $HOME"
    folder.symlink_to(light_repository)
    with TritonServer(folder) as server:
        assert sleep(server.grpc_url, 0.5) == 0.5


def test_a_model_that_fails_to_load_is_named(repository, tmp_path):
    root = tmp_path / "repository"
    shutil.copytree(repository, root)
    for file in ("config.pbtxt", "configs/embedded.pbtxt"):
        config = root / "backbone" / file
        right = config.read_text()
        config.write_text(right.replace('value { string_value: "1" }', 'value { string_value: "many" }', 1))
        assert config.read_text() != right
    with pytest.raises(StartError) as caught:
        TritonServer(root).start()
    assert "'backbone': parameter INTRA_OP_THREAD_COUNT is \"many\": write" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_edit_without_effect_is_told(light_repository, tmp_path):
    root, events = tmp_path / "repository", []
    shutil.copytree(light_repository, root)
    model = next(folder for folder in root.iterdir() if (folder / "config.pbtxt").is_file())
    text = (model / "config.pbtxt").read_bytes()
    embedded = text.replace(b'"python"', b'"python_in_process"')
    (model / "configs" / "embedded.pbtxt").write_bytes(replaced(text).encode() + embedded)
    (model / "config.pbtxt").write_bytes(text + b"\n")
    with TritonServer(root, on_event=events.append):
        assert [line.split(",")[0] for line in events] == [f"warning: {model.name}/config.pbtxt was changed"]


@pytest.mark.parametrize("built", [True, False])
def test_the_preprocess_step_has_its_library(repository_of_processes, monkeypatch, built):
    """Where there is none the server says so, and answers all the same."""
    current = backends.is_current
    monkeypatch.setattr(
        backends, "is_current", lambda library: current(library) if library is not backends.RESIZE else built
    )
    events = []
    with TritonServer(repository_of_processes, on_event=events.append) as server:
        maps = [Path(f"/proc/{stub.pid}/maps").read_text() for stub in backends_of(server)]
    assert len(maps) == 2
    assert ["libwidefield_resize.so" in text for text in maps] == [built, built]
    assert [event.partition(": run")[0] for event in events] == (
        [] if built else ["warning: images are resized slowly"]
    )


def test_start_timeout(repository):
    with pytest.raises(StartError, match=r"not ready after 0\.2 s"):
        TritonServer(repository, start_timeout=0.2).start()


def test_an_option_that_tritonserver_does_not_know(repository):
    with pytest.raises(StartError, match="unrecognized option '--sing'"):
        TritonServer(repository, tritonserver_args=["--sing"]).start()
