"""The tables of the HTML report: each column's content, the order of the rows; what a phone and a terminal show."""

import re
from pathlib import Path
from typing import Any

import pytest

from loadtest import report
from loadtest.recorder import Cell
from loadtest.results import describe, print_result
from tests.loadtest.saved import as_saved

TIMES = {"mean": 1.0, "p50": 2.0, "p95": 3.0, "p99": 4.0, "p99.9": 5.0, "max": 6.0, "sent_late_p99": 7.0}
PARTS = ("queue", "compute_input", "compute", "compute_output", "total")


def result(rate: float, name: str) -> dict[str, Any]:
    """A result as `--results` writes it; all figures of a row differ."""
    cell = Cell()
    cell.add(9.0, 0.1, None)
    cell.sent = cell.finished = 30
    row = {**describe(cell, 10.0), "failed": 8, "offered_per_s": 9.0, **{f"{key}_ms": ms for key, ms in TIMES.items()}}
    server = {"model": "classifier", "version": "1", "requests": 20, "failed": 10, "batch": 11.0}
    server |= {f"{part}_ms": float(number) for number, part in enumerate(PARTS, 12)}
    phase = {"name": name, "level": rate, "seconds": 10.0, "measured": True, "protocols": {"HTTP": row}, "slo": []}
    return as_saved({**phase, "server": [server]}, slo=None)


def rows(page: str, title: str) -> list[dict[str, str]]:
    """The rows of the table below `title`, by column heads."""
    table = page.split(f"<h2>{title}</h2>")[1].split("</table>")[0]
    heads, *rest = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line) for line in table.split("<tr>")[1:])
    return [dict(zip(heads, cells, strict=True)) for cells in rest]


def test_each_column_has_its_own_figure() -> None:
    page = report.render([result(3.0, "steady")])
    assert rows(page, "The client's measurements") == [
        {"phase": "steady", "protocol": "HTTP", "offered/s": "9.0", "answers/s": "3.0", "errors": "8"}
        | {"mean": "1.0", "p50": "2.0", "p95": "3.0", "p99": "4.0", "p99.9": "5.0", "max": "6.0", "late": "7.0"}
    ]
    assert rows(page, "The server's measurements") == [
        {"phase": "steady", "model": "classifier", "version": "1", "requests": "20", "failed": "10", "batch": "11.0"}
        | {"queue": "12.00", "input": "13.00", "compute": "14.00", "output": "15.00", "total": "16.00"}
    ]


def test_a_models_name_is_no_html() -> None:
    saved = result(3.0, "steady")
    saved["phases"][0]["server"][0]["model"] = "<b>net</b>"
    (row,) = rows(report.render([saved]), "The server's measurements")
    assert row["model"] == "&lt;b&gt;net&lt;/b&gt;"


def test_no_warning_of_a_search_is_left_out() -> None:
    """The runs of a search print none: the report is all that shows them."""
    results = [result(float(rate), f"{rate}/s") for rate in range(1, 7)]
    for each in results:
        each["phases"][0]["protocols"]["HTTP"]["sent_late_p99_ms"] = 20.0
    capacity = {"rate": 6.0, "limited": False, "tried": [(float(rate), [True]) for rate in range(1, 7)]}
    page = report.render(results, capacity)
    first, more = page.split("<h2>")[0].split("<summary>and 2 more</summary>")
    assert [re.findall(r"phase (\d)/s: 1 %", part) for part in (first, more)] == [["1", "2", "3", "4"], ["5", "6"]]


def test_the_runs_of_a_search_stand_by_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chart of times has the last run of each rate."""
    drawn: list[str] = []
    monkeypatch.setattr(report, "where_the_time_goes", lambda shares: drawn.extend(name for name, _ in shares) or "")
    results = [result(rate, f"{rate}/s ({number})") for number, rate in enumerate((8.0, 2.0, 2.0, 4.0), 1)]
    page = report.render(results, {"rate": 4.0, "limited": False, "tried": [(2.0, [False, True]), (4.0, [True])]})
    names = [row["phase"] for row in rows(page, "The client's measurements")]
    assert names == ["2.0/s (2)", "2.0/s (3)", "4.0/s (4)", "8.0/s (1)"]
    assert drawn == ["2.0/s (3)", "4.0/s (4)", "8.0/s (1)"]
    assert [[*row.values()] for row in rows(page, "Rates tried")] == [["2.0", "1 of 2"], ["4.0", "1 of 1"]]


@pytest.mark.slow
def test_a_phone_shows_all_of_it(phone: Any, tmp_path: Path) -> None:
    """The page is as wide as the phone; each table and chart is legible, and scrolls by itself."""
    saved = result(3.0, "window 12 (of a long name)")
    (steady,) = saved["phases"]
    saved["phases"] = [{**steady, "name": "warm-up", "seconds": 0.5, "measured": False}, steady]
    counts = {"protocol": "HTTP", "answered": 9, "finished": 9, "failed": 0, "p50_ms": 5.0, "p99_ms": 9.0}
    saved |= {"window_s": 1.0, "windows": [{"from_s": float(second), **counts} for second in range(11)]}
    (tmp_path / "report.html").write_text(report.render([saved]))
    phone.get((tmp_path / "report.html").as_uri())
    page = "return [document.documentElement.clientWidth, document.documentElement.scrollWidth]"
    assert phone.execute_script(page) == [390, 390]
    inside = "return [arguments[0].parentNode.scrollWidth, getComputedStyle(arguments[0].parentNode).overflowX]"
    wide = phone.find_elements("css selector", "svg, table")
    assert [each.tag_name for each in wide] == ["svg", "svg", "svg", "table", "table"]
    for each in wide:
        width, overflow = phone.execute_script(inside, each)
        assert width >= each.rect["width"] > 390
        assert overflow == "auto"
    assert all(each.rect["height"] < 30 for each in phone.find_elements("css selector", "td"))  # one line
    texts = {each.text: each.rect for each in wide[1].find_elements("css selector", "text")}
    first, second = texts["warm-up"], texts[steady["name"]]  # no letters one over the other
    assert 0 <= first["x"] < first["x"] + first["width"] < second["x"]


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_cuts_nothing_off(
    columns: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = result(3.0, "window 12")
    line = {"protocol": "HTTP", "objective": "sent/s (least that chance explains)", "limit": 0.123, "value": 1.0}
    saved["phases"][0]["slo"] = [{**line, "met": False}]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    print_result({**saved, "slo": {"errors": {"rate": 0.1}}})
    out = capsys.readouterr().out
    assert "…" not in out
    assert [word for word in ("requests/s", "answers/s", "explains", "MISSED") if word not in out] == []
