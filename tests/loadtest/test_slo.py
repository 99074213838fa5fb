"""Objectives: the file, and the verdict."""

from pathlib import Path

import pytest

from loadtest.recorder import Cell
from loadtest.results import shown_value
from loadtest.slo import judge, load_slo

GOOD = """
[latency_ms]
p50 = 15
p99 = 300
max = 1000
[errors]
rate = 0.1
[goodput]
deadline_ms = 100
share = 0.8
per_s = 4
"""


@pytest.fixture
def cell() -> Cell:
    """90 answers after 10 ms, 5 after 200 ms, 5 errors."""
    cell = Cell()
    for milliseconds in [10.0] * 90 + [200.0] * 5:
        cell.add(milliseconds, 0.1, None)
    for _ in range(5):
        cell.add(1.0, 0.1, "refused")
    return cell


def test_every_objective(tmp_path: Path, cell: Cell) -> None:
    (tmp_path / "slo.toml").write_text(GOOD)
    lines = {name: (limit, value, met) for name, limit, value, met in judge(load_slo(tmp_path / "slo.toml"), cell, 20)}
    assert lines == {
        "p50 ms": (15, pytest.approx(10, rel=0.005), True),
        "p99 ms": (300, pytest.approx(200, rel=0.005), True),
        "max ms": (1000, 200, True),
        "error rate": (0.1, 0.05, True),
        "goodput share within 100 ms": (0.8, 0.9, True),
        "goodput/s within 100 ms": (4, 4.5, True),
    }


@pytest.mark.parametrize(
    "slo",
    [
        {"latency_ms": {"p50": 9}},
        {"latency_ms": {"p99": 190}},
        {"latency_ms": {"max": 199}},
        {"errors": {"rate": 0.04}},
        {"goodput": {"deadline_ms": 100, "share": 0.91}},
        {"goodput": {"deadline_ms": 100, "per_s": 4.6}},
        {"goodput": {"deadline_ms": 9, "share": 0.1}},
    ],
)
def test_missed(slo: dict, cell: Cell) -> None:
    assert [met for *_, met in judge(slo, cell, 20)] == [False]


def test_what_is_just_kept_is_met() -> None:
    cell = Cell()
    for _ in range(100):
        cell.add(10.0, 0.1, None)
    slo = {"latency_ms": {"max": 10}, "errors": {"rate": 0}, "goodput": {"deadline_ms": 20, "share": 1, "per_s": 5}}
    assert [met for *_, met in judge(slo, cell, 20)] == [True] * 4


def test_a_share_that_is_missed_by_little_is_not_shown_as_whole() -> None:
    assert shown_value({"objective": "goodput share within 20 ms", "limit": 1, "value": 0.9987}) == "0.9987"
    assert shown_value({"objective": "p99 ms", "limit": 300, "value": 123.456}) == "123.5"


def test_no_answer_misses_everything() -> None:
    slo = {"latency_ms": {"p50": 9, "max": 9}, "errors": {"rate": 0.5}, "goodput": {"deadline_ms": 9, "share": 0.1}}
    assert not any(met for *_, met in judge(slo, Cell(), 20))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p99 = 3", r"p99 is not a table of objectives: use \[latency_ms\]"),
        ("[latency_ms]\np42 = 3", r"\[latency_ms\] p42 is not an objective: use p50"),
        ("[latency_ms]\np99 = '3'", r"\[latency_ms\] p99 is '3': give a number"),
        ("[latency_ms]\np99.9 = 3", r"\[latency_ms\] p99\.9 needs quotes in TOML: write \"p99\.9\""),
        ("[latency_ms]\np99 = nan", "p99 is nan"),
        ("[latency_ms]\np99 = inf", "p99 is inf: give a number, 0 or more and finite"),
        ("[latency_ms]\np99 = true", "p99 is True"),
        ("[errors]\nrate = 1.5", r"\[errors\] rate is 1.5: give a share"),
        ("[goodput]\nshare = 0.5", "needs deadline_ms"),
        ("[goodput]\ndeadline_ms = 5", "share or per_s"),
        ("[errors]", "no objective"),
        ("", "no objective"),
        ("p99 :", "is not TOML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "slo.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        load_slo(tmp_path / "slo.toml")


def test_a_file_that_is_away(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"away\.toml cannot be read \(No such file or directory\): name a TOML file"):
        load_slo(tmp_path / "away.toml")
