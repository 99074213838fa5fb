"""Locust in separate processes (it patches the standard library), against a real server and against none."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest.__main__ import run
from loadtest.null_check import null_server

ROOT = Path(__file__).parents[2]
Loadtest = Callable[..., subprocess.CompletedProcess]


@pytest.mark.server
def test_both_users_without_a_failure(
    locust: Loadtest,
    load_server: "TritonServer",  # noqa: F821
    tmp_path: Path,
    pictures: Path,
) -> None:
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
def test_users_wait_together(locust: Loadtest, load_server: "TritonServer", tmp_path: Path) -> None:  # noqa: F821
    """With blocking calls one user would run at a time: 4 users of a model that sleeps would send one by one."""
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
    arguments += [] if protocol == "both" else ["--null-check", "off"]
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


def test_no_server_fails(locust: Loadtest, pictures: Path, nobody: str) -> None:
    done = locust("-u", "2", "-t", "1s", "--json", "--images", str(pictures), "--host", nobody, "--grpc-host", nobody)
    assert done.returncode == 1
    for entry in json.loads(done.stdout):
        assert 0 < entry["num_failures"] == entry["num_requests"] < 50  # paused, not a busy loop


def test_the_steps_of_the_defaults_have_both_protocols(loadtest: Loadtest, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "slo.toml").write_text("[latency_ms]\np99 = 9000")
    load = ["--shape", "step", "--seconds", "4", "--warm-up", "0", "--null-check", "off", "--images", str(pictures)]
    with null_server() as (http, grpc):
        done = loadtest(*load, "--host", http, "--grpc-host", grpc, "--slo", str(tmp_path / "slo.toml"))
    assert done.returncode == 0, done.stdout


def test_the_null_check_is_of_a_process_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def null_rate(protocol: str, processes: int, images: list[str]) -> float:
        asked.append(processes)
        return 10.0

    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    monkeypatch.setattr("loadtest.__main__.null_rate", null_rate)
    assert run(["--processes", "-1", "--rate", "6"]) == 3
    assert asked == [3]


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ([], 3, True),
        (["--null-check", "warn"], 0, True),
        (["--null-check", "off"], 0, False),
        (["--worker"], 0, False),  # its master has measured, and has the rate
    ],
)
def test_a_rate_near_what_can_be_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, words: list[str], status: int, told: bool
) -> None:
    started: list[object] = []
    monkeypatch.setattr("loadtest.__main__.null_rate", lambda *_: 10.0)
    monkeypatch.setattr("loadtest.__main__._check_locust_options", lambda words: None)
    monkeypatch.setattr("loadtest.__main__._locust", lambda *options: started.append(options) or 0)
    assert run(["--rate", "6", *words]) == status
    assert len(started) == (status == 0)
    assert ("6 requests/s are more than half of the 10" in capsys.readouterr().err) == told


SENT = """
import random
from types import SimpleNamespace as Some
from loadtest.users import HttpClassifierUser

now = iter([2.0, 2.75]).__next__  # as it is sent, as it is answered
classifier = Some(classify=lambda image, top: None)
environment = Some(events=Some(request=Some(fire=lambda **_: None)))
recorder = Some(record=lambda *row: print(*row))
user = Some(clock=Some(now=now), classifier=classifier, environment=environment, recorder=recorder)
user.source, user.images, user.top, user.request_type = random, [b"picture"], 1, "HTTP"
HttpClassifierUser.send(user, 1.5)
"""


def test_latency_and_lateness_are_milliseconds_from_the_due_time() -> None:
    done = subprocess.run([sys.executable, "-c", SENT], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "1.5 HTTP 1250.0 500.0 None\n"


DRAWN = """
from types import SimpleNamespace as Some
from loadtest import users

users.open_classifier = lambda *_: None
for kind in (users.HttpClassifierUser, users.GrpcClassifierUser):
    user = Some(environment=Some(parsed_options=Some(top=1)), protocol=kind.protocol)
    kind.on_start(user)
    print(user.source.random())
"""


def test_no_two_senders_and_no_two_runs_draw_the_same_arrivals() -> None:
    """Otherwise requests of different senders would be due at the same times, which is no Poisson process."""
    command = [sys.executable, "-c", DRAWN]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout for _ in range(2)]
    assert len({number for drawn in runs for number in drawn.split()}) == 4


ADDRESSES = """
from types import SimpleNamespace
from loadtest.users import address

hosts = (None, ""), ("http://box:8000/", ""), ("https://box:8000", ""), ("box", ""), ("[::1]:8000", "")
hosts += ("box:9", "other:7"), ("https://box/gate/way", "box:7"), ("box:8000/gate/", "")
for host, grpc_host in hosts:
    environment = SimpleNamespace(host=host, parsed_options=SimpleNamespace(grpc_host=grpc_host))
    print(*(address(protocol, environment) for protocol in ("http", "grpc")))
"""


def test_addresses() -> None:
    done = subprocess.run([sys.executable, "-c", ADDRESSES], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == [
        "127.0.0.1:8000 127.0.0.1:8001",
        "box:8000 box:8001",
        "https://box:8000 grpcs://box:8001",
        "box box:8001",
        "[::1]:8000 [::1]:8001",
        "box:9 other:7",
        "https://box/gate/way box:7",
        "box:8000/gate box:8001",
    ]


HEADERS = """
from types import SimpleNamespace
from loadtest import users
from loadtest.options import as_words

users.Classifier = lambda *_, headers, **__: print(headers)  # what it sends them with is held by the client's tests
tls = {"tls": False, "tls_root": None, "tls_certificate": None, "tls_key": None}
options = SimpleNamespace(model="m", request_timeout=1.0, grpc_host="", header=["a: b", "c: d"], **tls)
for protocol in ("grpc", "http"):
    users.open_classifier(protocol, SimpleNamespace(host="box", parsed_options=options))
print(as_words({"header": options.header, "tls": False, "top": 5}))
"""


def test_headers_go_with_every_request() -> None:
    done = subprocess.run([sys.executable, "-c", HEADERS], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines() == [
        *["{'a': 'b', 'c': 'd'}"] * 2,
        "['--header', 'a: b', '--header', 'c: d', '--top', '5']",
    ]


def test_nothing_heavy_is_loaded() -> None:
    code = "import loadtest.locustfile, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert not {"torch", "sklearn", "PIL.Image", "scipy"} & set(done.stdout.split())
