"""Locust in processes of its own (it patches the standard library), against a real server and against none."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from loadtest import images
from loadtest.images import load_images

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(5):
        Image.new("RGB", (64, 48), (50 * number, 80, 120)).save(tmp_path / f"{number}.jpg")
    return tmp_path


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that refuses."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def locust(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).parent / "locust"), "-f", str(ROOT / "loadtest/locustfile.py"), "--headless"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=cwd, timeout=60)


def loadtest(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "loadtest", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)


@pytest.mark.server
def test_both_users_without_a_failure(load_server: "TritonServer", tmp_path: Path, pictures: Path) -> None:  # noqa: F821
    arguments = ["-u", "4", "-r", "4", "-t", "4s", "--json", "--images", str(pictures)]
    addresses = ["--host", f"http://{load_server.http_url}", "--grpc-host", load_server.grpc_url]
    done = locust(*arguments, *addresses, cwd=tmp_path)  # from anywhere
    assert done.returncode == 0, done.stderr
    entries = {entry["method"]: entry for entry in json.loads(done.stdout)}
    assert set(entries) == {"gRPC", "HTTP"}
    for entry in entries.values():
        assert entry["num_requests"] > 40
        assert entry["num_failures"] == 0
        assert 0 < entry["min_response_time"] < entry["max_response_time"] < 4000


@pytest.mark.server
def test_users_wait_together(load_server: "TritonServer", tmp_path: Path) -> None:  # noqa: F821
    """A blocking call would let one user run at a time: 4 users on a model that sleeps would send one by one."""
    (tmp_path / "sleep.jpg").write_bytes(b"0.5")  # seconds that the model sleeps
    arguments = ["-u", "4", "-r", "4", "-t", "3s", "--json", "--images", str(tmp_path), "--model", "slow"]
    done = locust(*arguments, "--host", load_server.http_url, "--grpc-host", load_server.grpc_url)
    assert done.returncode == 1  # it takes one and lets one wait; the others meet a full queue while they do
    entries = json.loads(done.stdout)
    assert sum(entry["num_failures"] for entry in entries) > 10
    assert "queue is too long" in done.stderr


@pytest.mark.server
@pytest.mark.parametrize(("protocol", "shown"), [("both", {"gRPC", "HTTP"}), ("grpc", {"gRPC"}), ("http", {"HTTP"})])
def test_own_command(load_server: "TritonServer", pictures: Path, protocol: str, shown: set[str]) -> None:  # noqa: F821
    arguments = ["--protocol", protocol, "--users", "2", "--seconds", "1", "--images", str(pictures)]
    done = loadtest(*arguments, "--host", load_server.http_url, "--grpc-host", load_server.grpc_url)
    assert done.returncode == 0, done.stderr
    rows = {cells[1].strip(): cells for line in done.stdout.splitlines() if len(cells := line.split("│")) > 5}
    assert set(rows) == shown
    for cells in rows.values():
        requests, errors, rate, p50, p99 = (float(cell) for cell in cells[2:7])
        assert requests > 10
        assert errors == 0
        assert rate > 10
        assert 0 < p50 <= p99


@pytest.mark.server
def test_half_a_service_fails(load_server: "TritonServer", pictures: Path, nobody: str) -> None:  # noqa: F821
    addresses = ["--host", nobody, "--grpc-host", load_server.grpc_url]
    done = loadtest("--users", "2", "--seconds", "1", "--images", str(pictures), *addresses)
    assert done.returncode == 1
    errors = done.stderr.splitlines()
    assert len(errors) == 2, errors  # equal errors are counted together
    assert "x HTTP: the server cannot be reached" in errors[0]
    assert errors[1] == "HTTP: no request was answered"


def test_no_server_fails(pictures: Path, nobody: str) -> None:
    done = locust("-u", "2", "-t", "1s", "--json", "--images", str(pictures), "--host", nobody, "--grpc-host", nobody)
    assert done.returncode == 1
    for entry in json.loads(done.stdout):
        assert 0 < entry["num_failures"] == entry["num_requests"] < 50  # paused, not a busy loop


def test_no_images_is_said(tmp_path: Path) -> None:
    for done in (locust("-t", "1s", "--images", str(tmp_path)), loadtest("--images", str(tmp_path))):
        assert done.returncode == 1
        assert f"loadtest: no image below {tmp_path}: name another folder with --images" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["--users", "1"], ["--seconds", "0"], ["--protocol", "smtp"]])
def test_wrong_usage(arguments: list[str]) -> None:
    assert loadtest(*arguments).returncode == 2


ADDRESSES = """
from types import SimpleNamespace
from loadtest.locustfile import GrpcClassifierUser, HttpClassifierUser

for host, grpc_host in ((None, ""), ("http://box:9/", ""), ("box", ""), ("[::1]:9", ""), ("box:9", "other:7")):
    HttpClassifierUser.host = GrpcClassifierUser.host = host  # as locust's runner does
    environment = SimpleNamespace(parsed_options=SimpleNamespace(grpc_host=grpc_host))
    print(*(kind(environment).address() for kind in (HttpClassifierUser, GrpcClassifierUser)))
"""


def test_addresses() -> None:
    done = subprocess.run([sys.executable, "-c", ADDRESSES], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == [
        "127.0.0.1:8000 127.0.0.1:8001",
        "box:9 box:8001",
        "box box:8001",
        "[::1]:9 [::1]:8001",
        "box:9 other:7",
    ]


def test_ctrl_c_ends_with_the_table(pictures: Path, nobody: str) -> None:
    command = [sys.executable, "-m", "loadtest", "--seconds", "60", "--images", str(pictures), "--host", nobody]
    process = subprocess.Popen(
        [*command, "--grpc-host", nobody], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=15)
    assert process.returncode == 1
    assert "p99" in out.decode()
    assert b"Traceback" not in error


def test_images_are_picked_evenly(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(str(number).encode())
    (tmp_path / "notes.txt").write_text("no image")
    assert load_images(tmp_path) == [str(number).encode() for number in range(10)]
    assert load_images(tmp_path, limit=4) == [b"0", b"2", b"5", b"7"]


def test_default_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "digit.png").write_bytes(b"digit")
    monkeypatch.setattr(images, "DIGITS", tmp_path)
    assert load_images() == [b"digit"]
    monkeypatch.setattr(images, "DIGITS", tmp_path / "none")
    photographs = load_images()
    assert len(photographs) >= 2
    assert all(data.startswith(b"\xff\xd8") for data in photographs)
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="--images"):
        load_images()


def test_nothing_heavy_is_loaded() -> None:
    code = "import loadtest.locustfile, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not {"torch", "sklearn", "PIL.Image", "scipy"} & set(done.stdout.split())
