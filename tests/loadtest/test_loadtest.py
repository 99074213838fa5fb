"""Locust in processes of its own (it patches the standard library), against a real server and against none."""

import errno
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image

from loadtest.__main__ import run
from loadtest.null_check import null_server
from loadtest.options import write_file

ROOT = Path(__file__).parents[2]
Loadtest = Callable[..., subprocess.CompletedProcess]


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
def test_own_command(
    loadtest: Loadtest,
    load_server: "TritonServer",  # noqa: F821
    pictures: Path,
    protocol: str,
    shown: set[str],
) -> None:
    arguments = ["--protocol", protocol, "--users", "2", "--seconds", "1", "--warm-up", "1", "--images", str(pictures)]
    arguments += ["--null-check", "off"] if protocol == "http" else []
    done = loadtest(*arguments, "--host", load_server.http_url, "--grpc-host", load_server.grpc_url)
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "steady" in line]
    assert {row[1] for row in rows} == shown
    for _, _, users, requests, errors, rate, p50, p99, slowest in rows:
        assert (users, errors) == (str(2 // len(shown)), "0")
        assert float(requests) > 10
        assert float(rate) > 10
        assert 0 < float(p50) <= float(p99) <= float(slowest)


@pytest.mark.server
def test_half_a_service_fails(
    loadtest: Loadtest,
    load_server: "TritonServer",  # noqa: F821
    pictures: Path,
    nobody: str,
) -> None:
    addresses = ["--host", nobody, "--grpc-host", load_server.grpc_url]
    # A set rate: callers that wait for nothing would send half of what a busy machine can, and be told so.
    done = loadtest("--rate", "20", "--seconds", "3", "--warm-up", "0", "--images", str(pictures), *addresses)
    assert done.returncode == 1
    null, *errors = done.stderr.splitlines()  # what this machine can send is shown first
    assert re.match(r"loadtest: \d+ requests/s go to a server that does nothing", null)
    errors = [line for line in errors if "after they were due" not in line]  # of a busy machine
    assert len(errors) == 2, errors  # equal errors are counted together
    assert "x HTTP: the server cannot be reached" in errors[0]
    assert errors[1] == "HTTP: no request was answered"


def test_a_report_of_no_answer_at_all(loadtest: Loadtest, pictures: Path, nobody: str, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    load = ["--rate", "20", "--seconds", "1", "--warm-up", "0", "--null-check", "off", "--images", str(pictures)]
    done = loadtest(*load, "--host", nobody, "--grpc-host", nobody, "--report", str(page))
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "HTTP: no request was answered" in page.read_text()


def test_no_server_fails(pictures: Path, nobody: str) -> None:
    done = locust("-u", "2", "-t", "1s", "--json", "--images", str(pictures), "--host", nobody, "--grpc-host", nobody)
    assert done.returncode == 1
    for entry in json.loads(done.stdout):
        assert 0 < entry["num_failures"] == entry["num_requests"] < 50  # paused, not a busy loop


def test_no_images_is_said(loadtest: Loadtest, tmp_path: Path) -> None:
    for done in (
        locust("-t", "1s", "--images", str(tmp_path)),
        loadtest("--null-check", "off", "--images", str(tmp_path)),
    ):
        assert done.returncode == 2
        assert f"loadtest: no image below {tmp_path}: name another folder with --images" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["--seconds=1", "--warm-up=1", "--levels=1,2", "--peak=2"])
def test_options_of_a_shape_need_one(option: str) -> None:
    done = locust("-t", "1s", option, "--images", "none")
    assert done.returncode == 2
    assert f"loadtest: {option.partition('=')[0]} is for --shape or --rate: give one, or leave it out" in done.stderr


@pytest.mark.parametrize("file", ["--report", "--results"])
def test_capacity_looks_for_the_folders_first(loadtest: Loadtest, tmp_path: Path, file: str) -> None:
    (tmp_path / "slo.toml").write_text("[errors]\nrate = 0")
    done = loadtest("capacity", "--slo", str(tmp_path / "slo.toml"), file, "none/r.html")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "loadtest: none/r.html cannot be written: no folder none\n"


def test_a_file_that_cannot_be_written_is_an_error(
    loadtest: Loadtest, pictures: Path, counting_server: Callable, tmp_path: Path
) -> None:
    """Of an objective that was met, too; the other file is written."""
    (tmp_path / "slo.toml").write_text("[errors]\nrate = 0")
    saved = tmp_path / "saved.json"
    load = ["--protocol", "http", "--users", "1", "--seconds", "1", "--warm-up", "0", "--null-check", "off"]
    load += ["--images", str(pictures), "--host", counting_server().address, "--slo", str(tmp_path / "slo.toml")]
    for full, other in (("--report", "--results"), ("--results", "--report")):
        saved.unlink(missing_ok=True)
        done = loadtest(*load, full, "/dev/full", other, str(saved))
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
        line = "loadtest: /dev/full cannot be written (No space left on device): name another file"
        assert line in done.stderr.splitlines()
        assert saved.stat().st_size > 1000


def test_half_a_file_does_not_stay(tmp_path: Path) -> None:
    path, limits = tmp_path / "report.html", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # a disk that is full after a kilobyte
    try:
        with pytest.raises(OSError, match=r"report\.html cannot be written \(File too large\): name another file"):
            write_file(path, 2000 * "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not path.exists()


def test_a_file_that_cannot_be_opened_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "write_text", refuse)
    with pytest.raises(OSError, match=r"report\.html cannot be written \(Permission denied\)"):
        write_file(path, "")
    assert path.exists()


@pytest.mark.parametrize("text", ["{}", "[1]", '{"runs": []}', "1"])
def test_what_holds_no_results(loadtest: Loadtest, tmp_path: Path, text: str) -> None:
    (tmp_path / "saved.json").write_text(text)
    done = loadtest("report", str(tmp_path / "saved.json"), str(tmp_path / "report.html"))
    assert done.returncode == 2
    assert "saved.json holds no results: name a file that --results has written" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--users", "1"],
        ["--seconds", "0"],
        ["--protocol", "smtp"],
        ["--users", "4", "--rate", "3"],
        ["--levels", "1,2"],
        ["--shape", "step", "--users", "4"],
        ["--shape", "step", "--levels", "1,4"],
        ["--shape", "step", "--levels", "0.4", "--protocol", "http"],
        ["--shape", "spike", "--peak", "0.2"],
        ["--shape", "step", "--levels", "1,x"],
        ["--no-such-option"],
        ["foo"],
        ["--csv"],
        ["--top", "0"],
        ["--top", "x"],
        ["--seconds", "x"],
        ["--results", "tests"],
        ["report", "README.md", "report.html"],
        ["--sizes", "4000"],
        ["--images", "none"],
        ["null", "--images", "none"],
        ["null", "--sizes", "4000"],
        ["--report", "no/such/folder/report.html"],
        ["capacity", "--repeats", "0", "--slo", "x"],
        ["capacity", "--processes", "-1", "--slo", "x"],
        ["null", "--processes", "0"],
        ["--processes", "-5"],
        ["run", "--processes", "0"],
        ["--slo", "no/such/slo.toml"],
        ["capacity", "--slo", "no/such/slo.toml"],
        ["report", "no/such/results.json", "report.html"],
    ],
)
def test_wrong_usage(loadtest: Loadtest, arguments: list[str]) -> None:
    """Before the load generator is measured."""
    done = loadtest(*arguments)
    assert done.returncode == 2
    assert "go to a server that does nothing" not in done.stderr
    assert not re.search(r"invalid \w+ value", done.stderr)  # argparse's, with a function's name


def test_the_steps_of_the_defaults_have_both_protocols(loadtest: Loadtest, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "slo.toml").write_text("[latency_ms]\np99 = 9000")
    load = ["--shape", "step", "--seconds", "4", "--warm-up", "0", "--null-check", "off", "--images", str(pictures)]
    with null_server() as (http, grpc):
        done = loadtest(*load, "--host", http, "--grpc-host", grpc, "--slo", str(tmp_path / "slo.toml"))
    assert done.returncode == 0, done.stdout


def test_steps_of_locust_need_users(pictures: Path) -> None:
    done = locust("-t", "1s", "--shape", "step", "--images", str(pictures))
    assert done.returncode == 2
    assert "loadtest: warm-up has 0 users: give at least 2, one for each protocol" in done.stderr


def test_the_null_check_is_of_a_process_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def null_rate(protocol: str, processes: int, images: list[str]) -> float:
        asked.append(processes)
        return 10.0

    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr("loadtest.__main__.null_rate", null_rate)
    assert run(["--processes", "-1", "--rate", "6"]) == 3
    assert asked == [3]


def test_an_unknown_option_is_named_and_not_its_value(loadtest: Loadtest) -> None:
    assert loadtest("--url", "box:8001").stderr == "loadtest: --url: not an option of loadtest or locust; see --help\n"


ADDRESSES = """
from types import SimpleNamespace
from loadtest.users import address

hosts = (None, ""), ("http://box:9/", ""), ("https://box", ""), ("box", ""), ("[::1]:9", ""), ("box:9", "other:7")
for host, grpc_host in hosts:
    environment = SimpleNamespace(host=host, parsed_options=SimpleNamespace(grpc_host=grpc_host))
    print(*(address(protocol, environment) for protocol in ("http", "grpc")))
"""


def test_addresses() -> None:
    done = subprocess.run([sys.executable, "-c", ADDRESSES], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == [
        "127.0.0.1:8000 127.0.0.1:8001",
        "box:9 box:8001",
        "https://box grpcs://box:8001",
        "box box:8001",
        "[::1]:9 [::1]:8001",
        "box:9 other:7",
    ]


@pytest.mark.parametrize(
    ("sent", "more"), [(signal.SIGINT, []), (signal.SIGTERM, []), (signal.SIGTERM, ["--processes", "2"])]
)
def test_a_signal_ends_a_run_with_the_table(
    pictures: Path, counting_server: Callable, sent: signal.Signals, more: list[str]
) -> None:
    server = counting_server()
    command = [
        sys.executable,
        "-m",
        "loadtest",
        "--seconds",
        "60",
        "--warm-up",
        "0",
        "--protocol",
        "http",
        "--images",
        str(pictures),
        *more,
    ]
    process = subprocess.Popen(
        [*command, "--host", server.address], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
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
    process = subprocess.Popen(
        [sys.executable, "-m", "loadtest", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    started: list[psutil.Process] = []
    while len(started) < processes or (words[0] == "capacity" and server.count < 5):
        assert time.monotonic() < deadline
        time.sleep(0.1)
        started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, sent)  # as a terminal does; what it started has sessions of its own
    _, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert error == "loadtest: stopped\n"
    assert psutil.wait_procs(started, timeout=5)[1] == []


def test_a_server_that_goes_has_no_capacity(pictures: Path, counting_server: Callable, tmp_path: Path) -> None:
    server = counting_server()
    (tmp_path / "slo.toml").write_text("[latency_ms]\np90 = 1000\n")
    words = ["capacity", "--protocol", "http", "--from-rate", "20", "--seconds", "2", "--warm-up", "0.5"]
    words += ["--repeats", "1", "--images", str(pictures), "--slo", str(tmp_path / "slo.toml")]
    words += ["--host", server.address]
    command = [sys.executable, "-m", "loadtest", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("20.0/s: met" in line for line in iter(process.stdout.readline, ""))
        server.shutdown()
        server.server_close()
        rest, error = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "capacity:" not in rest
    assert "failed: the server cannot be reached" in rest
    assert error == f"loadtest: no request over HTTP is answered any more: is the server at {server.address} there?\n"


@pytest.mark.parametrize(
    ("arguments", "needed"),
    [
        ([], "locust"),
        (["capacity"], "locust"),
        (["null"], "locust"),
        (["--help"], "locust"),
        (["report", "a.json", "a.html"], "locust, matplotlib"),
        (["capacity", "--report=a.html"], "locust, matplotlib"),
    ],
)
def test_what_is_not_installed_is_named_with_its_extra(tmp_path: Path, arguments: list[str], needed: str) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules.update(locust=None, matplotlib=None)\n")
    done = subprocess.run(
        [sys.executable, "-m", "loadtest", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"loadtest needs {needed}: pip install '.[loadtest]' in the checkout\n"


def test_nothing_heavy_is_loaded() -> None:
    code = "import loadtest.locustfile, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not {"torch", "sklearn", "PIL.Image", "scipy"} & set(done.stdout.split())
