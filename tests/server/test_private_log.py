"""tritonserver's log where no file is named: what a real server writes goes on to standard error, and stays short."""

import io
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server import StartError, TritonServer, private_log
from server.canary import ask
from server.log import read_from
from server.tritonserver_options import MANAGEMENT_HEADER

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.server


def test_the_log_goes_to_standard_error(light_repository, tmp_path):
    """Standard error gets the whole log to the last line, and no token."""
    command = [sys.executable, "-m", "server", "--model-repository", str(light_repository), "--log-file", "-"]
    command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    environment = os.environ | {"WIDEFIELD_MANAGEMENT_TOKEN": "s3cret"}
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=said, text=True)
    try:
        for _ in range(4):
            process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    text = (tmp_path / "said").read_text()
    assert "successfully loaded 'sleepy'" in text
    assert "Started HTTPService at 127.0.0.1:" in text
    assert "Waiting for in-flight requests to complete" in text
    assert text.splitlines()[-1] == "server: stopped"
    assert "s3cret" not in text
    assert not (ROOT / "-").exists()


def test_it_serves_where_nobody_reads_what_it_says(light_repository):
    """Both outputs are pipes whose other end is closed, as of `| head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "server", "--model-repository", str(light_repository)]
    command += ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=writing, stderr=writing)
    os.close(writing)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(6)  # some seconds longer than the start takes
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_why_it_did_not_start_is_told_all_the_same(light_repository, capsys):
    with (
        pytest.raises(StartError, match="option"),
        TritonServer(light_repository, log_file="-", tritonserver_args=["--no-such-option"]),
    ):
        pass
    assert "--no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize("log_file", [None, "-"])
def test_it_stays_short(light_repository, log_file, monkeypatch, capsys):
    monkeypatch.setattr(private_log, "LIMIT", 10_000)
    monkeypatch.setattr(private_log, "TICK", 0.02)
    token = {MANAGEMENT_HEADER: "s3cret"}
    with TritonServer(light_repository, log_file=log_file, management_token="s3cret") as server:
        ask(server.http_url, "POST", "/v2/logging", 10, b'{"log_verbose_level": 1}', token)
        sizes, asked = [], 0
        end = time.monotonic() + 20
        while sum(b < a for a, b in itertools.pairwise(sizes)) < 3:
            assert time.monotonic() < end, sizes
            ask(server.http_url, "GET", "/v2/models/stats", 10)
            asked += 1
            sizes.append(server.launch.runtime.log.stat().st_size)
        assert max(sizes) < 100_000
    forwarded = capsys.readouterr().err.count("HTTP request: 0 /v2/models/stats")
    assert forwarded >= asked - 3 if log_file else forwarded == 0


def test_a_standard_error_that_was_closed_ends_nothing(tmp_path, monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed)
    monkeypatch.setattr(private_log, "LIMIT", 10)
    (tmp_path / "log").write_text("more than ten bytes\n")
    private_log.PrivateLog(tmp_path / "log", forward=True).close()
    assert (tmp_path / "log").stat().st_size == 0


def test_whole_lines_are_passed_on_and_the_rest_at_the_end(tmp_path, monkeypatch, capsys):
    """Whatever bytes they are."""
    monkeypatch.setattr(private_log, "TICK", 60.0)
    (tmp_path / "log").write_bytes(b"one\n\xff tw")
    log = private_log.PrivateLog(tmp_path / "log", forward=True)
    log._look()
    assert capsys.readouterr().err == "one\n"
    with (tmp_path / "log").open("ab") as file:
        file.write(b"o")
    log.close()
    assert capsys.readouterr().err == "\ufffd two"


def test_a_log_that_was_shortened_is_read_from_its_start(tmp_path):
    (tmp_path / "log").write_text("short")
    assert read_from(tmp_path / "log", 2) == "ort"
    assert read_from(tmp_path / "log", 100) == "short"
