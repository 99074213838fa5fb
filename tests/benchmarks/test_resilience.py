"""The arithmetic of benchmarks/resilience; real servers and faults are in tests/server/test_balancer.py."""

import json
import time
from pathlib import Path

import pytest

from benchmarks.latency import percentiles
from benchmarks.resilience import __main__ as command
from benchmarks.resilience.digits import Picture
from benchmarks.resilience.footprint import Footprint, middle
from benchmarks.resilience.load import Load
from benchmarks.resilience.restarts import restart
from benchmarks.resilience.soak import Sample, growth, soak
from benchmarks.served_tables import faults_table
from client import Classifier, QueueFullError, Request
from client.testing import FakeTransport, Reply


def test_every_request_is_counted_once() -> None:
    def reply(request: Request) -> Reply:
        if request.image == b"late":
            time.sleep(0.3)
        return QueueFullError("full") if request.image == b"full" else [("cat", 0, 0.9)]

    pictures = [Picture(name, "cat", 0.9) for name in (b"good", b"late", b"full")] + [Picture(b"wrong", "dog", 0.9)]
    with Classifier(transport=FakeTransport(reply), retries=0, timeout=5) as classifier:
        with Load([classifier], pictures, rate=40.0, deadline=0.2) as load:
            time.sleep(0.5)
        summary = load.summary()
    assert summary["sent"] == summary["answered_in_time"] + sum(summary["failed"].values()) > 12
    assert set(summary["failed"]) == {"Late", "QueueFullError", "WrongAnswer"}
    assert abs(summary["answered_in_time"] - summary["sent"] / 4) <= 1
    assert summary["first_failures"]


def test_where_nothing_is_answered_in_time_there_are_no_latencies() -> None:
    transport = FakeTransport(lambda request: QueueFullError("full"))
    with Classifier(transport=transport, retries=0, timeout=5) as classifier:
        with Load([classifier], [Picture(b"", "cat", 0.9)], rate=40.0, deadline=0.2) as load:
            time.sleep(0.1)
        summary = load.summary()
    assert summary["answered_in_time"] == 0
    assert [summary[f"{part}_ms"] for part in ("p50", "p99", "longest")] == [None] * 3


def test_latencies_are_told_in_milliseconds_by_their_percentiles() -> None:
    seconds = [number / 1000 for number in range(100, -1, -1)]
    assert percentiles(seconds, "in_time_") == {"in_time_p50_ms": 50.0, "in_time_p99_ms": 99.0}


def test_growth_is_from_after_the_warm_up_to_the_end() -> None:
    samples = [Sample(done, 100.0 if done < 100 else 200.0 + done / 100, 80) for done in range(0, 1001, 10)]
    found = growth(samples, 1000)
    assert found["rss_mib"] == {"after_warm_up": 201.4, "at_the_end": 209.5}
    assert found["rss_growth_percent"] == pytest.approx(4.0, abs=0.1)
    with pytest.raises(ValueError, match="too few to see growth"):
        growth(samples[:1], 1000)


def test_a_count_of_a_moment_is_no_leak() -> None:
    usual, moment = Footprint(4, 7, 3, 2, 1), Footprint(4, 8, 3, 2, 1)
    assert middle([usual, moment, usual]) == {
        "processes": 4,
        "descriptors": 7,
        "threads": 3,
        "shm_files": 2,
        "folders": 1,
    }


def test_a_part_leaves_the_others_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.harness.RESULTS", tmp_path)
    soaked = json.loads(command.write("soak", {"requests": 1}, None).read_text())["soak"]
    path = command.write("restarts", {"restarts": 2}, "busy")
    found = json.loads(path.read_text())
    assert found["soak"] == soaked
    assert found["soak"].items() >= {"warning": None, "requests": 1}.items()
    assert found["restarts"].items() >= {"warning": "busy", "restarts": 2}.items()


def test_each_part_tells_of_its_own_day_and_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that was measured on another machine keeps that machine's name."""
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.harness.RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.harness.machine", lambda: {"cpu": "old", "cores": 2, "instructions": []})
    command.write("soak", {"requests": 1}, None)
    monkeypatch.setattr("benchmarks.harness.machine", lambda: {"cpu": "new", "cores": 4, "instructions": []})
    found = json.loads(command.write("restarts", {"restarts": 2}, None).read_text())
    assert (found["soak"]["machine"]["cpu"], found["restarts"]["machine"]["cpu"]) == ("old", "new")
    committed = json.loads((Path(__file__).parents[2] / "benchmarks/results/faults.json").read_text())
    own = {name: found["soak"][name] for name in ("date", "machine", "versions")}
    committed["soak"] |= own
    lines = faults_table(committed)
    (told,) = [line for line in lines if line.startswith("- **400000 requests**")]
    assert f"to one server (old, 2 cores, ; {', '.join(f'{n} {v}' for n, v in own['versions'].items())}" in told
    assert "old" not in lines[0]
    committed["soak"] |= {name: committed["faults"][name] for name in own}
    assert "- **400000 requests** to one server: " in " ".join(faults_table(committed))


def test_what_was_not_held_is_said() -> None:
    row = {"fault": "kill -9", "path": "client", "failed": {}, "left_over": {"processes": 0}, "back_s": 1.0}
    assert command.not_held("faults", {"rows": [row]}) == []
    for wrong in ({"failed": {"Late": 1}}, {"left_over": {"processes": 1}}, {"back_s": None}):
        (line,) = command.not_held("faults", {"rows": [row, row | wrong]})
        assert line.startswith("kill -9, through the client")
    still = {"growth": {"processes": 0}, "left_after_stop": {"processes": 0}}
    assert command.not_held("restarts", still) == []
    assert len(command.not_held("restarts", still | {"growth": {"processes": 2}})) == 1
    fine = {"outcomes": {"answered": 9, "broken and refused": 1}, "restarts": 0, "rss_growth_percent": 1.9}
    assert command.not_held("soak", fine) == []
    for wrong in ({"outcomes": {"answered wrongly": 1}}, {"restarts": 1}, {"rss_growth_percent": 2.0}):
        assert len(command.not_held("soak", fine | wrong)) == 1


@pytest.mark.slow
@pytest.mark.server
def test_a_dozen_restarts_and_a_short_soak(digits_repository: Path) -> None:
    """This is long enough to find what restarts leave behind, not to see memory grow."""
    assert command.not_held("restarts", restart(digits_repository, 12)) == []
    found = soak(digits_repository, 3000)
    assert command.not_held("soak", found | {"rss_growth_percent": 0.0}) == []
    assert sum(found["outcomes"].values()) == 3000
