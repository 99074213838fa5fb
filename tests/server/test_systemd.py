"""systemd is told when the server answers and when it stops, as sd_notify(3) has it."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from server.canary import classify_canary
from server.endpoints import free_ports
from server.systemd import notify


@pytest.fixture(params=["file", "abstract"])
def listening(request, tmp_path):
    """A socket, and what NOTIFY_SOCKET says of it."""
    path = str(tmp_path / "notify")
    address = path if request.param == "file" else f"@{path}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(90)
        listener.bind(address.replace("@", "\0"))
        yield listener, address


@pytest.mark.server
def test_a_server_that_answers_is_started(repository, listening):
    listener, address = listening
    http, grpc, metrics = map(str, free_ports(["127.0.0.1"] * 3))
    command = [sys.executable, "-m", "server", "--model-repository", str(repository)]
    command += ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
    with subprocess.Popen(command, env=os.environ | {"NOTIFY_SOCKET": address}, stdout=subprocess.DEVNULL) as process:
        try:
            assert listener.recv(99) == b"READY=1"
            classify_canary(f"127.0.0.1:{http}", "classifier", 5)
            process.send_signal(signal.SIGTERM)
            assert listener.recv(99) == b"STOPPING=1"
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_who_does_not_listen_is_no_error(monkeypatch, tmp_path):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
