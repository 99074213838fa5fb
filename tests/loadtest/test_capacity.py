"""The search for the highest rate that holds."""

import itertools
import math
import random
from pathlib import Path

import pytest

from loadtest import capacity_command, report
from loadtest.capacity import find_capacity
from loadtest.recorder import Cell
from loadtest.results import describe, least_offered, met, rate_to_offer, silent, too_few, warnings
from tests.loadtest.saved import as_saved


def result(good: bool, late: float | None = 1.0) -> dict:
    protocols = {"gRPC": {"sent_late_p99_ms": late}, "HTTP": {"sent_late_p99_ms": None}}
    return {"complete": True, "phases": [{"measured": True, "slo": [{"met": good}], "protocols": protocols}]}


def run(rate: float, late_ms: float) -> dict:
    """As `--results` has it: 90 of 100 answers within 10 ms."""
    protocols = {}
    for name in ("HTTP", "gRPC"):
        cell = Cell()
        for number in range(100):
            cell.add(10.0 if number < 90 else 10 * late_ms, late_ms, None)
        cell.sent = cell.finished = round(rate / 2 * 20)
        protocols[name] = describe(cell, 20.0)
    line = {"protocol": "HTTP", "objective": "p99 ms", "limit": 100.0, "value": 10 * late_ms, "met": late_ms < 10}
    phase = {"name": "steady", "level": rate, "seconds": 20.0, "measured": True, "protocols": protocols, "slo": [line]}
    return as_saved({**phase, "server": []}, slo={"latency_ms": {"p99": 100.0}})


@pytest.mark.parametrize("first", [3.0, 50.0, 90.0, 700.0])
def test_finds_the_limit_from_either_side(first: float) -> None:
    search = find_capacity(lambda rate: result(rate <= 73), first, 10_000, repeats=1)
    assert 73 * 0.94 < search.capacity <= 73
    assert not search.limited
    assert len(search.results) == len(search.tried) < 16


@pytest.mark.parametrize("first", [8.0, 700.0])
def test_the_generator_is_the_limit(first: float) -> None:
    search = find_capacity(lambda rate: result(rate <= 73), first, 40, repeats=1)
    assert (search.capacity, search.limited) == (40, True)


def test_nothing_holds() -> None:
    search = find_capacity(lambda rate: result(False), 80, 1000, repeats=1)
    assert search.capacity == 0
    assert min(search.tried) >= 80 / 128


@pytest.mark.parametrize("first", [10.0, 30.0, 60.0, 700.0])
def test_a_rate_too_low_for_the_goodput_is_not_tried(first: float) -> None:
    """`per_s` is 40, and the server does 100; in 20 seconds chance moves the measured rate."""
    source = random.Random(0)
    search = find_capacity(
        lambda rate: result(rate <= 100 and rate + source.gauss(0, math.sqrt(rate / 20)) >= 40),
        max(first, rate_to_offer(40, 20)),
        1000,
        least=40,
    )
    assert 100 * 0.94 < search.capacity <= 100
    assert min(search.tried) > 40


@pytest.mark.parametrize("ceiling", [30.0, 1000.0])
def test_no_rate_has_the_goodput(ceiling: float) -> None:
    search = find_capacity(lambda rate: result(False), 48, ceiling, repeats=1, least=40)
    assert (search.capacity, search.limited) == (0, False)
    assert len(search.tried) < 5


def test_what_a_rate_offers_at_least() -> None:
    assert least_offered(rate_to_offer(40, 20), 20) == pytest.approx(40)
    assert rate_to_offer(0, 20) == 0


@pytest.mark.parametrize("repeats", [4, 5])
def test_most_of_the_repeats_decide(repeats: int) -> None:
    source = random.Random(0)
    search = find_capacity(lambda rate: result(rate <= 73 and source.random() < 0.95), 100, 1000, repeats)
    assert 73 * 0.9 < search.capacity <= 73
    for outcomes in search.tried.values():
        decisive = 3 if outcomes[-1] else repeats - 2
        assert outcomes.count(outcomes[-1]) == decisive  # no more runs than decide it


@pytest.mark.parametrize(
    ("runs", "tried", "holds"), [([True, True], 2, True), ([True, False], 2, False), ([False], 1, False)]
)
def test_of_two_repeats_both_must_hold(runs: list[bool], tried: int, holds: bool) -> None:
    outcomes = iter(runs)
    search = find_capacity(lambda rate: result(next(outcomes, False)), 80, 80, repeats=2)
    assert len(search.tried[80]) == tried
    assert search.limited == holds


def test_a_run_that_was_cut_short_meets_nothing() -> None:
    assert met(result(True))
    assert not met(result(True) | {"complete": False})


def test_a_rate_near_what_the_generator_can_send_is_doubtful() -> None:
    """The limit is half of the 1000 requests/s that a null model got."""
    assert not [line for line in warnings(run(500.0, 1.0)) if "half" in line]
    assert [line for line in warnings(run(510.0, 1.0)) if "510 answers/s are more than half of" in line]


def test_the_runs_are_as_long_and_begin_as_high_as_the_objectives_need(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Two protocols: each needs 1000 answers for a p99.9, and a rate that chance does not take below 40/s."""
    (tmp_path / "slo.toml").write_text('[latency_ms]\n"p99.9" = 100\n[goodput]\ndeadline_ms = 100\nper_s = 40')
    loads: list[list[str]] = []
    monkeypatch.setattr(capacity_command, "null_rate", lambda *_: 400.0)
    monkeypatch.setattr(capacity_command, "run_load", lambda words: loads.append(words) or run(100.0, 1.0))
    assert capacity_command.capacity(["--slo", str(tmp_path / "slo.toml"), "--from-rate", "30", "--repeats", "1"]) == 0
    rates, seconds = ([float(words[words.index(name) + 1]) for words in loads] for name in ("--rate", "--seconds"))
    assert rates[0] == pytest.approx(2 * rate_to_offer(40, 20))
    assert seconds == pytest.approx([1.2 * 2000 / rates[0], 20, 20], abs=0.05)


def test_every_run_is_of_the_target_that_was_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "slo.toml").write_text("[latency_ms]\np99 = 100")
    named = ["--protocol", "grpc", "--host", "box:8", "--grpc-host", "box:7", "--model", "mine", "--top", "3"]
    named += ["--request-timeout", "4.0", "--tls-root", "ca", "--tls-certificate", "me", "--tls-key", "key"]
    named += ["--processes", "2"]
    loads: list[list[str]] = []
    monkeypatch.setattr(capacity_command, "null_rate", lambda *_: 150.0)
    monkeypatch.setattr(capacity_command, "run_load", lambda words: loads.append(words) or run(60.0, 1.0))
    words = ["--slo", str(tmp_path / "slo.toml"), "--repeats", "1", "--warm-up", "1.5"]
    assert capacity_command.capacity([*words, *named]) == 0
    for words in loads:
        pairs = list(itertools.pairwise(words))
        assert [pair for pair in itertools.pairwise(named) if pair[0].startswith("--") and pair not in pairs] == []
    closed, *opened = loads
    assert "--users" in closed
    assert opened
    assert all(words[words.index("--warm-up") + 1] == "1.5" for words in opened)


def test_no_rate_that_holds_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Two protocols with a goodput of 40/s each: no rate of 80/s or less was tried."""
    (tmp_path / "slo.toml").write_text("[goodput]\ndeadline_ms = 100\nper_s = 40")
    rates = []

    def missed(words: list[str]) -> dict:
        rates.append(float(words[words.index("--rate") + 1]))
        result = run(rates[-1], 1.0)
        result["phases"][0]["slo"][0]["met"] = False
        return result

    monkeypatch.setattr(capacity_command, "null_rate", lambda *_: 400.0)
    monkeypatch.setattr(capacity_command, "run_load", missed)
    assert capacity_command.capacity(["--slo", str(tmp_path / "slo.toml"), "--from-rate", "90", "--repeats", "1"]) == 1
    assert "capacity: 0.0 requests/s\n" in capsys.readouterr().out
    assert min(rates) > 80


def test_a_percentile_of_too_few_answers_is_told() -> None:
    """One of two protocols has too few answers for the percentile."""
    result = run(10.0, 1.0)
    assert too_few(result) == []
    assert "All objectives met" in report.render([result])
    result["phases"][0]["protocols"]["gRPC"]["answered"] = 99
    assert too_few(result) == ["phase steady: p99 of 99 answers; it takes 100: measure longer"]
    assert "of too few answers to be sure" in report.render([result])


def test_answers_of_the_warm_up_are_none() -> None:
    result = run(10.0, 1.0)
    (warm_up,) = result["phases"]
    protocols = {name: {**row, "answered": 0} for name, row in warm_up["protocols"].items()}
    result["phases"] = [{**warm_up, "measured": False}, {**warm_up, "protocols": protocols}]
    assert silent(result) == ["HTTP", "gRPC"]


def test_a_run_whose_sender_was_late_is_made_again() -> None:
    runs = iter([False, True, True] * 50)
    search = find_capacity(lambda rate: result(rate <= 73 and next(runs), late=700.0), 50, 60, repeats=1)
    assert (search.capacity, search.limited) == (60, True)
    assert search.tried == {50: [True], 60: [True]}
    assert len(search.results) == 3
    names = [phase["name"] for result in search.results for phase in result["phases"]]
    assert names == ["50.0/s (1, made again)", "50.0/s (2)", "60.0/s (3)"]


def test_a_run_that_was_made_again_is_named_and_is_no_point_of_the_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    late = iter([70.0, 1.0, 1.0])
    told: list[bool] = []
    search = find_capacity(
        lambda rate: run(rate, next(late)), 85.2, 100, repeats=1, tell=lambda result: told.append(result["made_again"])
    )
    assert told == [True, False, False]
    drawn: list[dict] = []
    monkeypatch.setattr(report, "latency_against_throughput", lambda results, rate: drawn.extend(results) or "<svg>")
    page = report.render(search.results, {"rate": 100.0, "limited": True, "tried": sorted(search.tried.items())})
    assert drawn == search.results[1:]
    assert "Objectives: p99 ms: 100.<" in page
    assert "phase 85.2/s (1, made again): 1 % of the requests went more than 70 ms" in page
    for label in ("85.2/s (1, made again)", "85.2/s (2)", "100.0/s (3)"):
        assert page.count(f"<td>{label}</td>") == 2  # once for each protocol


def test_a_file_that_cannot_be_written_leaves_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "slo.toml").write_text("[latency_ms]\np99 = 100")
    monkeypatch.setattr(capacity_command, "null_rate", lambda *_: 60.0)
    monkeypatch.setattr(capacity_command, "run_load", lambda words: run(float(words[words.index("--rate") + 1]), 1.0))
    for full, other in (("--results", "--report"), ("--report", "--results")):
        written = tmp_path / other
        words = ["--slo", str(tmp_path / "slo.toml"), "--from-rate", "30", full, "/dev/full", other, str(written)]
        assert capacity_command.capacity(words) == 1
        line = "loadtest: /dev/full cannot be written (No space left on device): name another file\n"
        assert capsys.readouterr().err == line
        assert written.stat().st_size > 1000


def test_a_sender_that_is_always_late_is_judged_in_the_end() -> None:
    search = find_capacity(lambda rate: result(False, late=700.0), 80, 1000, repeats=3)
    assert search.capacity == 0
    assert len(search.results) == sum(3 + len(outcomes) for outcomes in search.tried.values())
