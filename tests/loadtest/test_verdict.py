"""With a real server: objectives decide the exit status, the report shows both sides' times, the capacity is found."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

Loadtest = Callable[..., subprocess.CompletedProcess]
UNKNOWN = "not measured: what this load generator can send (python -m loadtest null)"


@pytest.fixture
def target(load_server: "TritonServer") -> list[str]:  # noqa: F821
    return ["--host", load_server.http_url, "--grpc-host", load_server.grpc_url, "--sizes", "64:2"]


def slo(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return ["--slo", str(path)]


@pytest.mark.server
def test_objectives_decide_and_the_report_shows_why(loadtest: Loadtest, tmp_path: Path, target: list[str]) -> None:
    saved, page = tmp_path / "results.json", tmp_path / "report.html"
    objectives = slo(tmp_path / "slo.toml", "[latency_ms]\np50 = 0.01\np99 = 9000\n[errors]\nrate = 0")
    load = ["--shape", "step", "--rate", "120", "--seconds", "4", "--warm-up", "1", "--null-check", "off"]
    done = loadtest(*target, *load, *objectives, "--results", str(saved), "--report", str(page))
    assert done.returncode == 1
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines()]
    assert ["step 1", "HTTP", "15"] in [cells[:3] for cells in lines]  # a quarter of the rate, half for each protocol
    judged = {tuple(cells[:3]): cells[-1] for cells in lines if cells and cells[-1] in ("met", "MISSED")}
    for step in ("step 1", "step 4"):
        for protocol in ("HTTP", "gRPC"):
            assert judged[step, protocol, "p50 ms"] == "MISSED"
            assert judged[step, protocol, "p99 ms"] == judged[step, protocol, "error rate"] == "met"
            sent = judged.get((step, protocol, "sent/s (least that chance explains)"))
            assert sent == {"step 1": None, "step 4": "met"}[step]  # so few requests may be none by chance

    result = json.loads(saved.read_text())
    for phase in result["phases"]:
        sent = sum(row["requests"] for row in phase["protocols"].values())
        server = {row["model"]: row for row in phase["server"]}
        assert abs(server["classifier"]["requests"] - sent) <= 3 + 0.1 * sent  # those in flight between two phases
        for step in ("preprocess", "colour"):
            assert server[step]["compute_ms"] > 0
            assert server[step]["queue_ms"] >= 0
        seen = max(row["mean_ms"] for row in phase["protocols"].values())
        assert 0 < server["classifier"]["total_ms"] < 1.1 * seen

    text = page.read_text()
    assert "Objectives missed" in text
    (objectives,) = re.findall(r'Objectives</h2>\s*<div class="wide">(<table>.*?</table>)', text, re.DOTALL)
    assert {row.count("<td") for row in objectives.splitlines()[1:]} == {6}
    assert text.count("<svg") == 3
    assert not [word for word in ("src=", "@import", "url(http", "<script", "<link") if word in text]  # stands alone
    for part in text.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part.split("</svg>")[0] + "</svg>")
    assert "tritonserver counts an ensemble's failures twice" in text
    assert UNKNOWN in done.stderr
    assert "What the load generator can send: not measured." in text
    for word in ("preprocess: queue", "preprocess: compute", "outside the server", "p99 objective 9000 ms"):
        assert word in text
    again = tmp_path / "again.html"
    assert loadtest("report", str(saved), str(again)).returncode == 0
    assert again.read_text() == text


@pytest.mark.server
def test_errors_within_the_objective_are_good(loadtest: Loadtest, tmp_path: Path, target: list[str]) -> None:
    """Without objectives a single error means exit status 1."""
    (tmp_path / "no picture.jpg").write_bytes(b"no picture")
    load = ["--images", str(tmp_path), "--users", "2", "--seconds", "1", "--warm-up", "0", "--null-check", "off"]
    objectives = slo(tmp_path / "slo.toml", "[errors]\nrate = 1")
    target = target[:4]
    assert loadtest(*target, *load, *objectives).returncode == 0
    assert loadtest(*target, *load).returncode == 1


@pytest.mark.slow
@pytest.mark.server
def test_capacity(loadtest: Loadtest, tmp_path: Path, load_server: "TritonServer") -> None:  # noqa: F821
    """A model that sleeps 50 ms answers at most 20 requests a second and queues one: of 29 it must refuse 30 %."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/sleep.jpg").write_bytes(b"0.05")
    page, saved = tmp_path / "report.html", tmp_path / "results.json"
    objectives = slo(tmp_path / "slo.toml", "[errors]\nrate = 0.3")
    target = ["--host", load_server.http_url, "--protocol", "http", "--model", "slow"]
    search = ["--seconds", "3", "--warm-up", "1", "--repeats", "3", "--precision", "0.3", "--from-rate", "8"]
    files = ["--images", str(tmp_path / "images"), "--report", str(page), "--results", str(saved)]
    done = loadtest("capacity", *target, *search, *files, *objectives, timeout=250)
    assert done.returncode == 0, done.stderr
    found = json.loads(saved.read_text())["capacity"]
    assert f"capacity: {found['rate']:.1f} requests/s" in done.stdout
    assert 4 <= found["rate"] <= 32  # of three seconds, beside other tests
    tried = {rate: outcomes for rate, outcomes in found["tried"]}
    assert tried[found["rate"]].count(True) == 2
    assert found["limited"] or any(outcomes.count(False) == 2 for outcomes in tried.values())
    assert "Rates tried" in page.read_text()
    assert UNKNOWN not in page.read_text()
