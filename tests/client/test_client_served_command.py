"""The command line against a real tritonserver, over both protocols."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]


def run(*arguments: str | Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "client", "classify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


@pytest.fixture
def photos(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    for name, data in {"r.png": picture("red"), "sub/b.jpg": picture("blue", "JPEG"), "sub/bad.gif": b"text"}.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(data)
    return tmp_path


def test_command_line(photos: Path, address: str, protocol: str) -> None:
    done = run(photos, "--url", address, "--protocol", protocol, "--top", "1", "--json")
    assert done.returncode == 1, done.stderr
    red, blue, bad = map(json.loads, done.stdout.splitlines())
    assert [p["label"] for p in red["predictions"] + blue["predictions"]] == ["red: warm", "blue [cold]"]
    assert bad["image"].endswith("bad.gif")
    assert bad["error"]["type"] == "InvalidImageError"


def test_command_line_table(photos: Path, address: str, protocol: str) -> None:
    done = run(photos / "r.png", "--url", address, "--protocol", protocol)
    assert done.returncode == 0, done.stderr
    assert "red: warm" in done.stdout
    assert done.stderr == ""


def test_command_line_ends_soon_after_ctrl_c(address: str, protocol: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        (tmp_path / "a.png").write_bytes(b"x")
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        command = [sys.executable, "-m", "client", "classify", str(tmp_path), "--url", url, "--protocol", protocol]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        silent.settimeout(20)
        connection, _ = silent.accept()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=5)
        connection.close()
    assert process.returncode == 130
    assert error == ""
