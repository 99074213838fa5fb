"""Drains, signals and kills: requests in flight are answered, and nothing is left of a server."""

import concurrent.futures
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from server_models import in_process
from server_processes import commands_of, nothing_left_of, processes_of, shm_of, wait_until

from benchmarks.resilience.footprint import tritonserver_of
from server import TritonServer
from server.process import GUARD
from server.tritonserver_options import stack_limits

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[2]


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


@pytest.fixture
def guarded(tmp_path):
    """guarded(script) -> a guard with a shell in tritonserver's place, which has said a line; it is `said`."""
    guards = []

    def start(script, grace=60):
        order = {"command": ["bash", "-c", script], "environment": {}, "grace": grace}
        order |= {"runtime": str(tmp_path / "runtime"), "shm_prefix": f"{tmp_path.name}-", "stack": stack_limits()}
        command, pipe = [sys.executable, "-I", "-S", str(GUARD)], subprocess.PIPE
        guards.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, start_new_session=True))
        guards[-1].stdin.write(json.dumps(order) + "\n")
        guards[-1].said = guards[-1].stdout.readline()
        return guards[-1]

    yield start
    for guard in guards:
        guard.kill()
        with contextlib.suppress(BrokenPipeError):
            guard.communicate()


def assert_ends(process, number, seconds):
    """Assert that the command ends at the signal, with every process that it has started."""
    with nothing_left_of(process):
        process.send_signal(number)
        process.communicate(timeout=seconds)
        assert process.returncode == 0


def interrupt_twice(process, seconds):
    """The first Ctrl-C waits, the second does not."""
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=seconds)


def test_requests_in_flight_are_answered_before_the_end(light_repository, sleep):
    with TritonServer(light_repository) as server, concurrent.futures.ThreadPoolExecutor(2) as pool:
        request = pool.submit(sleep, server.grpc_url, 2.5)
        time.sleep(0.7)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun > 1.0
        assert request.result(0.1) == 2.5


def test_an_idle_http_connection_is_waited_for(light_repository):
    with (
        TritonServer(light_repository, drain_seconds=4) as server,
        socket.create_connection(server.http_url.split(":")) as idle,
    ):
        idle.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: here\r\n\r\n")
        assert idle.recv(100).startswith(b"HTTP/1.1 200")
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun > 3


def test_a_drain_ends_after_its_time(light_repository, sleep):
    with TritonServer(light_repository, drain_seconds=1) as server, concurrent.futures.ThreadPoolExecutor(2) as pool:
        request = pool.submit(sleep, server.grpc_url, 60)
        time.sleep(0.7)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 12
        assert request.exception(10) is not None


def test_sigterm_leaves_nothing(cli, repository_of_processes):
    process = cli(models=repository_of_processes)
    with nothing_left_of(process) as (processes, folder):
        assert len(processes) == 4  # guard, tritonserver, two backend processes
        assert shm_of(folder.name)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=40)
        assert process.returncode == 0
    assert "waiting for requests in flight and open HTTP connections, 30 s at most" in errors
    assert errors.splitlines()[-1] == "server: stopped"
    assert "NVML" not in errors


HANGUP = pytest.param(
    signal.SIGHUP,
    marks=pytest.mark.skipif(
        signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, reason="the tests were started by nohup"
    ),
)


@pytest.mark.parametrize("number", [signal.SIGTERM, HANGUP])
def test_a_signal_waits_for_requests_in_flight(cli, light_repository, sleep, number):
    process = cli(models=light_repository)
    with nothing_left_of(process):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            request = pool.submit(sleep, process.grpc_url, 3)
            time.sleep(0.7)
            process.send_signal(number)
            assert request.result(20) == 3
        process.communicate(timeout=20)
        assert process.returncode == 0


def test_kill_9_of_the_supervisor_leaves_nothing(cli, light_repository):
    process = cli(models=light_repository)
    with nothing_left_of(process):
        process.kill()
        process.wait()


def test_ctrl_c_while_starting_and_twice(cli):
    process = cli(wait=False)
    wait_until(lambda: "/widefield-" in commands_of(processes_of(process.pid)), 20, "tritonserver started")
    assert_ends(process, signal.SIGINT, 30)


def test_a_second_ctrl_c_does_not_wait(cli, light_repository, sleep):
    process = cli(models=light_repository)
    with nothing_left_of(process), concurrent.futures.ThreadPoolExecutor(1) as pool:
        request = pool.submit(sleep, process.grpc_url, 60)
        time.sleep(0.7)
        interrupt_twice(process, 10)
        assert request.exception(5) is not None


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


def test_a_stop_is_told_to_a_server_whose_canary_waits(cli, hanging_repository, tmp_path):
    (tmp_path / "hang").unlink()
    process = cli("--probe-interval", "0.1", "--probe-timeout", "60", "--drain-seconds", "1", models=hanging_repository)
    (tmp_path / "hang").touch()
    wait_until((tmp_path / "hangs").exists, 20, "the canary waits")
    assert_ends(process, signal.SIGTERM, 30)


def test_a_second_ctrl_c_does_not_wait_for_a_canary(cli, hanging_repository, tmp_path):
    (tmp_path / "hang").unlink()
    process = cli("--probe-interval", "0.1", "--probe-timeout", "60", models=hanging_repository)
    (tmp_path / "hang").touch()
    wait_until((tmp_path / "hangs").exists, 20, "the canary waits")
    interrupt_twice(process, 20)
    assert process.returncode == 0


@pytest.mark.parametrize(("end", "code"), [("exit 3", 3), ("kill -9 $$", 137)])
def test_the_guard_ends_as_tritonserver_did(guarded, end, code):
    assert guarded(f"echo begun; {end}").wait(20) == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_guard_drains(guarded, number):
    """A container's runtime may send the signal to every process."""
    guard = guarded("trap 'exit 7' TERM; echo begun; while :; do sleep 0.1; done")
    guard.send_signal(number)
    assert guard.wait(20) == 7


def test_the_grace_is_given_once(guarded):
    guard = guarded("trap '' TERM; echo begun; while :; do sleep 0.1; done", grace=1)

    def ended():
        with contextlib.suppress(BrokenPipeError):
            guard.stdin.write("stop\n")
        return guard.poll() is not None

    wait_until(ended, 20, "it is killed")
    assert guard.returncode == 137


def test_what_tritonserver_leaves_ends_with_it(guarded, tmp_path):
    left, other = (Path("/dev/shm", f"{tmp_path.name}{end}") for end in ("-left", "s"))
    guard = guarded(f"touch {left} {other}; sleep 60 & echo $!")
    assert guard.wait(20) == 0
    assert not psutil.pid_exists(int(guard.said))
    assert not left.exists()
    other.unlink()  # of a name that only begins alike
