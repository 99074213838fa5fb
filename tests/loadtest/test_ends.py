"""Runs that a signal ends, and a server that goes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtest import capacity_command

ROOT = Path(__file__).parents[2]


def hangup(disposition: signal.Handlers) -> Callable[[], object]:
    """A `preexec_fn` that sets SIGHUP's disposition as nohup (ignored) or a terminal (default) does."""
    return lambda: signal.signal(signal.SIGHUP, disposition)


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "loadtest", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(
    ("sent", "more"),
    [(signal.SIGINT, []), (signal.SIGTERM, []), (signal.SIGHUP, []), (signal.SIGTERM, ["--processes", "2"])],
)
def test_a_signal_ends_a_run_with_the_table(
    pictures: Path, counting_server: Callable, sent: signal.Signals, more: list[str]
) -> None:
    server = counting_server()
    words = ["--seconds", "60", "--warm-up", "0", "--protocol", "http", "--null-check", "off", *more]
    words += ["--images", str(pictures)]
    process = start(*words, "--host", server.address, preexec_fn=hangup(signal.SIG_DFL))
    deadline = time.monotonic() + 30
    while server.count < 20 and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(sent)
    out, error = process.communicate(timeout=30)
    assert psutil.wait_procs(workers, timeout=5)[1] == []
    assert process.returncode == 0, out + error  # every request was answered, and nothing was asked of them
    assert "p99" in out
    assert "the test was cut short" in error
    assert "Traceback" not in error


def test_a_hangup_under_nohup_ends_nothing(pictures: Path, counting_server: Callable) -> None:
    """It ends neither the null check nor the run."""
    words = ["--protocol", "http", "--users", "1", "--seconds", "1", "--warm-up", "0", "--images", str(pictures)]
    process = start(*words, "--host", counting_server().address, preexec_fn=hangup(signal.SIG_IGN))
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.1)
    process.kill()
    out, error = process.communicate()
    assert process.returncode == 0, error
    assert "steady" in out
    assert "the test was cut short" not in error


@pytest.mark.parametrize(
    ("command", "processes", "sent"),  # what it starts: the null server, the run, its workers
    [
        ("null", 2, signal.SIGINT),
        ("null --processes 2", 4, signal.SIGINT),
        ("run --protocol http", 2, signal.SIGINT),
        ("capacity --from-rate 5", 1, signal.SIGINT),
        ("run --protocol http", 2, signal.SIGTERM),
        ("capacity --from-rate 5", 1, signal.SIGTERM),
    ],
)
def test_a_signal_ends_all_that_was_started(
    pictures: Path, counting_server: Callable, tmp_path: Path, command: str, processes: int, sent: signal.Signals
) -> None:
    server = counting_server()
    words = [*command.split(), "--protocol", "http", "--images", str(pictures)]
    if words[0] == "capacity":
        (tmp_path / "slo.toml").write_text("[errors]\nrate = 0.1\n")
        words += ["--slo", str(tmp_path / "slo.toml"), "--host", server.address]
    process = start(*words, start_new_session=True)
    deadline = time.monotonic() + 60
    started: list[psutil.Process] = []
    while len(started) < processes or (words[0] == "capacity" and server.count < 5):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, sent)  # as a terminal does; what it started has sessions of its own
    _, error = process.communicate(timeout=30)
    assert process.returncode == 128 + sent, error
    assert error == "loadtest: stopped\n"
    assert psutil.wait_procs(started, timeout=5)[1] == []


def test_a_server_that_goes_has_no_capacity(pictures: Path, counting_server: Callable, tmp_path: Path) -> None:
    server = counting_server()
    (tmp_path / "slo.toml").write_text("[latency_ms]\np90 = 1000\n")
    words = ["capacity", "--protocol", "http", "--from-rate", "20", "--seconds", "2", "--warm-up", "0.5"]
    words += ["--repeats", "1", "--images", str(pictures), "--slo", str(tmp_path / "slo.toml")]
    words += ["--host", server.address]
    with start(*words) as process:
        assert process.stdout is not None
        assert any("20.0/s: met" in line for line in iter(process.stdout.readline, ""))
        server.shutdown()
        server.server_close()
        rest, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "capacity:" not in rest
    assert "failed: the server cannot be reached" in rest
    assert error == f"loadtest: no request is answered over HTTP at {server.address} (--host): is the server there?\n"


def test_a_protocol_that_is_not_there_is_named(
    pictures: Path,
    counting_server: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(capacity_command, "null_rate", lambda *_: 1000.0)
    server = counting_server()
    (tmp_path / "slo.toml").write_text("[latency_ms]\np90 = 1000\n")
    command = ["--images", str(pictures), "--slo", str(tmp_path / "slo.toml")]
    with pytest.raises(RuntimeError) as failed:
        capacity_command.capacity([*command, "--host", server.address, "--grpc-host", "127.0.0.1:1"])
    expected = "no request is answered over gRPC at 127.0.0.1:1 (--grpc-host): is the server there?"
    assert str(failed.value) == expected
    assert "/s: " not in capsys.readouterr().out, "no rate was tried"
