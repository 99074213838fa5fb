"""The pages hold what the results files say: nobody edits a figure by hand."""

import json
import re
from pathlib import Path

import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from benchmarks import charts, report
from benchmarks.kernels.tables import stages, us


@pytest.mark.parametrize("page", list(report.pages()), ids=lambda page: page.name)
def test_the_committed_page_is_the_reports(page: Path) -> None:
    text = report.written(page, report.pages()[page])
    assert page.read_text() == text
    assert text.count("|---") > 0


def test_serving_tells_of_slow_clients_what_their_results_say() -> None:
    rows = json.loads((report.RESULTS / "slow_clients.json").read_text())["rows"]
    (row,) = [row for row in rows if row["kind"] == "HTTP, a body of 1 MB a byte a second"]
    text = " ".join((Path(__file__).parents[2] / "docs" / "serving.md").read_text().split())
    told = re.search(r"(\d+) connections that announced 1 MB and sent a byte a second for (\d+) s took (\d+) MB", text)
    assert told is not None
    assert [float(figure) for figure in told.groups()] == [row["clients"], row["seconds"], row["rss_growth_mb"]]


def test_the_readme_counts_the_requests_that_met_faults() -> None:
    rows = json.loads((report.RESULTS / "faults.json").read_text())["faults"]["rows"]
    answered, sent = (sum(row[name] for row in rows) for name in ("answered_in_time", "sent"))
    assert f"{answered:,} of {sent:,}" in (Path(__file__).parents[2] / "README.md").read_text()


def test_what_a_gpu_has_measured_since_gets_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest, before = (report.load(f"kernels_nvidia_h200{run}") for run in ("", "_before"))
    without = report.gpu_tables(newest, before)
    (tmp_path / "end_to_end_nvidia_h200.json").write_text(json.dumps(report.load("end_to_end_nvidia_h200")))
    about = {name: newest[name] for name in ("gpu", "versions", "date")}
    layer = {"batch": 8, "channels": 128, "size": 56, "kernel": 31, "native_over_python": 1.25}
    times = {"native": {"median": 0.05}, "python": {"median": 0.04}}
    (tmp_path / "native_nvidia_h200.json").write_text(json.dumps(about | {"rows": [layer | {"ms": times}]}))
    layouts = {"batch": 8, "ms": {"channels_last": {"median": 3.0}, "contiguous": {"median": 2.5}}}
    (tmp_path / "served_layout_nvidia_h200.json").write_text(json.dumps(about | {"rows": [layouts]}))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    tables = report.gpu_tables(newest, before)
    added = [lines for lines in tables if lines not in without]
    assert len(tables) == len(without) + 2
    assert [lines[-1] for lines in added] == ["| 8 | 128, 56, 31 | 50.0 | 40.0 | 1.25 |", "| 8 | 3.00 | 2.50 |"]
    assert "channels_last | contiguous" in added[1][2]


def test_the_variants_are_of_the_run_that_has_more() -> None:
    newest, before = (report.load(f"kernels_nvidia_h200{run}") for run in ("", "_before"))
    fewer, more = newest["variants"][:1], before["variants"]
    for ours, theirs in ((fewer, more), (more, more), (more, fewer)):
        tables = report.gpu_tables(newest | {"variants": ours, "date": "2027-01-01"}, before | {"variants": theirs})
        (shown,) = (lines for lines in tables if lines[0].startswith("**Beside these layers"))
        assert len(shown) == 4 + len(more)
        assert ("; 2027-01-01" in shown[0]) == (ours is more)


def test_what_is_not_published_or_not_timed_has_no_figure() -> None:
    result = json.loads((report.RESULTS / "compare.json").read_text())
    row = next(row for row in result["rows"] if row["published"])
    other = {**row, "image_size": row["image_size"] + 32, "latency_ms": {}}
    unknown = {**row, "published": {**row["published"], "top1": None, "top1_from_22k": None, "gmacs": None}}
    *_, second, third = report.comparison_table({**result, "rows": [row, other, unknown]})
    cells = [cell.strip() for cell in second.split("|")[1:-1]]
    assert cells[3] == f"{row['macs'] / 1e9:.3f}"  # at another size
    assert cells[4] == "-"
    cells = [cell.strip() for cell in third.split("|")[1:-1]]
    assert (cells[3], cells[5]) == (f"{row['macs'] / 1e9:.3f}", "none")


def test_a_row_of_the_networks_table_is_one_runtime_on_each_processor() -> None:
    result = report.load("cpu_inference_replknet_31b")
    intel = {**result, "machine": {**result["machine"], "cpu": "Intel(R) Xeon(R)"}}
    intel["rows"] = [{**row, "ms": {**row["ms"], "median": 7.0}} for row in result["rows"]]
    _, _, header, _, *rows = report.inference_table([result, intel])
    assert header.split("|")[3].strip() == "AMD: ms, median (p20 to p80)"
    assert header.split("|")[5].strip() == "Intel: ms, median (p20 to p80)"
    assert len(rows) == len(result["rows"])
    for row, cells in zip(result["rows"], (line.split("|") for line in rows), strict=True):
        assert (cells[1].strip(), cells[5].split()[0]) == (row["runtime"], "7")
    for other in (intel["rows"][1:], intel["rows"][::-1]):
        with pytest.raises(ValueError, match="too many values"):
            report.inference_table([result, {**intel, "rows": other}])


def test_a_busy_host_is_told_beside_the_machine() -> None:
    result = json.loads((report.RESULTS / "serving_overhead.json").read_text())
    assert report.conditions({**result, "warning": None}).endswith(f"; {result['date']}")
    for said in ("other work on 0.5 of 2 cores", "load average 1.9"):  # the latter in older files
        warned = report.conditions({**result, "warning": f"{said}: do not publish these figures"})
        assert warned.endswith(f"; {result['date']}; the host was busy: {said}")


def test_the_chart_has_the_fastest_of_each_way_and_ours_in_its_colour() -> None:
    result = report.load("kernels_nvidia_h200")
    axes = Figure().subplots()
    charts.gpu_panel(axes, result)
    ways = {
        label: to_rgba(bars[0].get_facecolor()) for bars, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    assert [label for label, colour in ways.items() if colour == to_rgba(charts.OUR_COLOUR)] == ["Widefield"]
    shown = [bar.get_width() for bar in axes.patches if bar.get_facecolor() == ways["cuDNN's best"]]
    timed = [
        [us(row, name) for name, found in row["candidates"].items() if name.startswith("cudnn") and "ms" in found]
        for row, *_ in stages(result, 64)
    ]
    assert shown == [min(times) for times in timed if times]
    assert any(len(times) > 1 for times in timed)
    axes = Figure().subplots()
    charts.cpu_panel(axes, report.load("cpu_inference_replknet_31b"), 1)
    names = [label.get_text() for label in axes.get_yticklabels()]
    ours = [bar.get_facecolor() == to_rgba(charts.OUR_COLOUR) for bar in axes.patches]
    assert ours == [name.startswith("Widefield") for name in names]
    assert any(ours)
