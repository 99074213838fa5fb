"""Open loop: every request that is due is sent once, and its latency counts from then; one process or several."""

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.endpoints import free_ports

ROOT = Path(__file__).parents[2]
SMALL = ["--sizes", "64:2", "--protocol", "http"]
Loadtest = Callable[..., subprocess.CompletedProcess]


def rows(path: Path) -> list[dict[str, Any]]:
    return [phase["protocols"]["HTTP"] for phase in json.loads(path.read_text())["phases"]]


def test_a_stall_shows_in_an_open_loop_only(loadtest: Loadtest, tmp_path: Path, counting_server: Callable) -> None:
    """The server stands still for 1.5 of 6 seconds. A closed loop hardly asks it meanwhile: coordinated omission."""
    found = {}
    for name, load in (("open", ["--rate", "60"]), ("closed", ["--users", "1"])):
        server = counting_server(stall_at=60, stall=1.5)
        saved = tmp_path / name
        times = ["--seconds", "6", "--warm-up", "0", "--null-check", "off"]
        done = loadtest("--host", server.address, *SMALL, *load, *times, "--results", str(saved))
        assert done.returncode == 0, done.stderr
        (found[name],) = rows(saved)
        left_out = server.count - found[name]["requests"]  # what a closed loop sends until it is told to stop
        assert left_out == 0 if name == "open" else 0 <= left_out <= 0.01 * server.count
        assert 1400 < found[name]["max_ms"] < 3000
    assert abs(found["open"]["requests"] - 360) < 5 * math.sqrt(360)
    assert found["open"]["p90_ms"] > 500  # a quarter of the requests was due during the stall
    assert found["open"]["p99_ms"] > 1300
    assert found["closed"]["p90_ms"] < 500


def test_what_fails_is_not_sent_again(loadtest: Loadtest, tmp_path: Path, counting_server: Callable) -> None:
    server = counting_server(status=503)
    load = ["--rate", "30", "--seconds", "1", "--warm-up", "1", "--null-check", "off"]
    done = loadtest("--host", server.address, *SMALL, *load, "--results", str(tmp_path / "results.json"))
    assert done.returncode == 1
    phases = rows(tmp_path / "results.json")
    assert sum(row["failed"] for row in phases) == server.count > 30
    assert sum(row["answered"] for row in phases) == 0


def test_what_is_asked_is_what_was_named(loadtest: Loadtest, tmp_path: Path, counting_server: Callable) -> None:
    """Each picture, as many classes, no longer than the timeout."""
    server = counting_server(delay=2.5)
    load = ["--rate", "40", "--seconds", "1", "--warm-up", "0", "--null-check", "off", "--top", "3"]
    load += ["--request-timeout", "1", "--results", str(tmp_path / "results.json")]
    assert loadtest("--host", server.address, *SMALL, *load).returncode == 1
    (row,) = rows(tmp_path / "results.json")
    assert row["answered"] == 0
    assert "no answer within 1 s" in str(row["errors"])
    assert {request["outputs"][0]["parameters"]["classification"] for request, _ in server.asked} == {3}
    assert len({image for _, image in server.asked}) == 2


def test_two_processes_share_the_rate(loadtest: Loadtest, tmp_path: Path, counting_server: Callable) -> None:
    server = counting_server()
    saved = tmp_path / "results.json"
    load = ["--rate", "80", "--shape", "spike", "--peak", "2", "--seconds", "5", "--warm-up", "1"]
    load += ["--processes", "2", "--null-check", "off", "--results", str(saved), "--csv", str(tmp_path / "locust")]
    done = loadtest("--host", server.address, *SMALL, *load)
    assert done.returncode == 0, done.stderr
    assert json.loads(saved.read_text())["workers"] == 2
    with (tmp_path / "locust_stats_history.csv").open() as file:
        assert max(int(row["User Count"]) for row in csv.DictReader(file)) == 2  # a sender in each
    phases = rows(saved)
    for row, expected in zip(phases, (80, 160, 160, 160), strict=True):
        assert abs(row["requests"] - expected) < 5 * math.sqrt(expected)
    assert sum(row["requests"] for row in phases) == server.count


@pytest.mark.parametrize("load", [["--rate", "20"], ["--rate", "20", "--processes", "2"], ["--users", "2"]])
def test_what_is_in_flight_at_the_end_is_counted(
    loadtest: Loadtest, tmp_path: Path, counting_server: Callable, load: list[str]
) -> None:
    server = counting_server(delay=1.5)
    load = [*load, "--seconds", "1", "--warm-up", "0", "--null-check", "off"]
    done = loadtest("--host", server.address, *SMALL, *load, "--results", str(tmp_path / "results.json"))
    assert done.returncode == 0, done.stderr
    (row,) = rows(tmp_path / "results.json")
    assert row["answered"] == row["requests"] == server.count > 0


@pytest.mark.slow
def test_master_and_two_workers(tmp_path: Path, counting_server: Callable) -> None:
    server = counting_server()
    saved = tmp_path / "results.json"
    port = str(free_ports(["127.0.0.1"])[0])
    command = [str(Path(sys.executable).parent / "locust"), "-f", str(ROOT / "loadtest/locustfile.py"), "--headless"]
    images = ["--sizes", "64:2"]
    workers = [
        subprocess.Popen([*command, "--worker", "--master-port", port, *images, "HttpClassifierUser"], stderr=-3)
        for _ in range(2)
    ]
    load = ["--shape", "step", "--rate", "80", "--seconds", "8", "--warm-up", "1", "--results", str(saved)]
    of_master = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--expect-workers", "2"]
    try:
        done = subprocess.run(
            [*command, *of_master, "--host", server.address, *images, *load, "HttpClassifierUser"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait(20)
    assert done.returncode == 0, done.stderr
    phases = rows(saved)
    for row, expected in zip(phases, (20, 40, 80, 120, 160), strict=True):
        assert abs(row["requests"] - expected) < 5 * math.sqrt(expected)
    assert sum(row["requests"] for row in phases) == server.count


def test_a_rate_that_cannot_be_sent_is_refused(loadtest: Loadtest, counting_server: Callable) -> None:
    server = counting_server()
    load = ["--rate", "1000000", "--seconds", "1", "--null-check", "refuse"]
    done = loadtest("--host", server.address, *SMALL, *load)
    assert done.returncode == 3
    assert "1e+06 requests/s are more than half of the" in done.stderr
    assert "a server that does nothing, in a process of its own" in done.stderr
    assert server.count == 0
