"""docs/results.md from results files: statistics, tables, the sentences and the charts."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.evidence import report
from benchmarks.evidence.charts import draw_long_tail, draw_simmim
from benchmarks.evidence.plan import EXPERIMENTS
from benchmarks.evidence.run import Arm
from benchmarks.evidence.spread import Spread, difference, spread
from benchmarks.markdown import wrapped

METRICS = {
    "top1": 0.9,
    "balanced": 0.8,
    "many": 0.99,
    "medium": 0.9,
    "few": 0.5,
    "clean": 0.98,
    "fgsm": 0.4,
    "pgd": 0.1,
    "apgd": 0.05,
}
TIMES = {"seconds": 30.0, "processor_seconds": 25.0, "seconds_before": 100.0, "processor_seconds_before": 90.0}


def seed_values(arm: Arm, place: int, seed: int) -> dict[str, Any]:
    """A later arm is better, by 1 % each; seeds differ by a tenth of that."""
    values = {name: value - 0.2 + 0.01 * place + 0.001 * seed * (place % 3) for name, value in METRICS.items()}
    curves = {name: [2.3, 1.0 + shift] for name, shift in (("reference", 0.0), ("operator", 1.5e-6), ("pytorch", 2e-6))}
    runs = [run.name for run in arm.runs[seed].chain()]
    return {
        "seed": seed,
        "runs": runs,
        **values,
        **TIMES,
        "seconds": 30.0 + 60.0 * (seed == 2),  # it was stopped meanwhile
        "losses": curves,
        "largest": {"operator": 1e-6, "pytorch": 2e-6},
    }


def document(name: str) -> dict[str, Any]:
    rows = [
        {"group": arm.group, "arm": arm.name, "steps": [], "seeds": [seed_values(arm, place, s) for s in range(3)]}
        for place, arm in enumerate(EXPERIMENTS[name](range(3)))
    ]
    machine = {"cpu": "a processor", "cores": 2, "instructions": ["avx2"], "memory_gib": 8.0}
    return {"machine": machine, "versions": {"torch": "2.15"}, "date": "2026-01-02", "jobs": 2, "rows": rows}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    for name in EXPERIMENTS:
        (folder / f"evidence_{name}.json").write_text(json.dumps(document(name)))
    return folder


def test_a_run_counts_once_whatever_tables_it_stands_in() -> None:
    def row(runs: str, seconds: float, before: float = 0.0) -> dict[str, Any]:
        return {"seeds": [{"runs": list(runs), "seconds": seconds, "seconds_before": before}]}

    one = {"rows": [row("p", 60), row("pf", 30, 60), row("pfa", 5, 90), row("xyz", 10, 50)]}
    other = {"rows": [row("pg", 20, 60), row("pf", 30, 60)]}
    minutes = report.minutes_in_all({"one": one, "other": other}, "seconds")
    assert minutes == pytest.approx((60 + 30 + 5 + 50 + 10 + 20) / 2 / 60)


def test_spread_and_verdict() -> None:
    value = Spread.of([0.01, 0.02, 0.03])
    assert (value.mean, value.std, value.least, value.most) == pytest.approx((0.02, 0.01, 0.01, 0.03))
    assert value.verdict() == "no difference shown"  # 0.02 -+ 4.303 * 0.01 / sqrt(3) = 0.0248
    assert Spread.of([0.02, 0.03, 0.025]).verdict() == "gains"
    assert Spread.of([-0.02, -0.03, -0.025]).verdict() == "costs"
    assert Spread.of([0.0, 0.0, 0.0]).verdict() == "no difference shown"
    assert Spread.of([0.5]).verdict() == "one seed"


def test_differences_are_of_pairs() -> None:
    rows = [{"arm": str(n), "seeds": [{"seed": s, "top1": 0.1 * n + 0.01 * s} for s in range(3)]} for n in range(2)]
    assert spread(rows[1], "top1").std == pytest.approx(0.01)
    assert difference(rows[1], rows[0], "top1").std == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ValueError, match=r"0 has seeds \[0, 1\], 1 has \[0, 1, 2\]"):
        difference({"arm": "0", "seeds": rows[0]["seeds"][:2]}, rows[1], "top1")


def test_the_report_has_every_arm_with_its_spread_and_time(results: Path, tmp_path: Path) -> None:
    text = report.whole(results, tmp_path)
    sentences = " ".join(text.split())
    for name in EXPERIMENTS:
        for row in document(name)["rows"]:
            assert f"| {row['arm']} |" in text or name == "kernels"
    assert "| from scratch | 70.0 ± 0.0 (70.0 to 70.0) |  | baseline | 30 + 100 / 25 + 90 |" in text
    assert "| SimMIM, token | 71.1 ± 0.1 (71.0 to 71.2) | +1.1 ± 0.1 | gains |" in text
    shots = "60.0 ± 0.0 (60.0 to 60.0) | 79.0 ± 0.0 | 70.0 ± 0.0 | 30.0 ± 0.0 (30.0 to 30.0)"  # balanced, many, ...
    assert f"| plain cross-entropy | 70.0 ± 0.0 (70.0 to 70.0) | {shots} |  | baseline | 30 + 100 / 25 + 90 |" in text
    attacked = "20.0 ± 0.0 (20.0 to 20.0) | -10.0 ± 0.0 (-10.0 to -10.0) | -15.0 ± 0.0 (-15.0 to -15.0)"
    assert f"| plain | 78.0 ± 0.0 (78.0 to 78.0) |  | {attacked} | 30 + 100 / 25 + 90 |" in text
    assert "20 images: against plain cross-entropy *gains*: class weights 1/n (+1.1 ± 0.1), class" in sentences
    assert "first steps whose loss agrees to 1e-6: finetune 1 of 2, pretrain 1 of 2." in sentences
    numbers = "1 of 2 | 0.0e+00 | 1.0e-06 (1.0e-06) | 2.0e-06 (2.0e-06)"
    assert f"| finetune | float32, small steps | {numbers} |  | 30 + 100 / 25 + 90 |" in text
    assert f"| finetune | float32 | {numbers} | 0.0e+00 | 30 + 100 / 25 + 90 |" in text
    assert f"| finetune | float64 | {numbers} |  | 30 + 100 / 25 + 90 |" in text
    assert "minutes by the clock" in sentences
    assert "a processor" in text
    for picture in ("evidence_simmim.png", "evidence_long_tail.png"):
        with Image.open(tmp_path / picture) as image:
            assert image.width > 600
        assert f"img/{picture}" in text


def test_the_committed_page_is_the_reports(tmp_path: Path) -> None:
    assert (report.DOCS / "results.md").read_text() == report.whole(report.RESULTS, tmp_path)


def test_every_experiment_has_its_own_day_and_machine() -> None:
    """Experiments are measured one by one (--only), so each names the machine that it was measured on."""
    here = {"machine": {"cpu": "a", "cores": 2, "instructions": ["avx2"]}, "versions": {"torch": "2"}}
    there = {**here, "machine": {**here["machine"], "cpu": "b"}}
    loaded = {"one": here | {"date": "2026-01-03"}, "two": here | {"date": "2026-01-02"}}
    loaded |= {"three": here | {"date": "2026-01-03"}, "four": there | {"date": "2026-01-02"}}
    said = "a, 2 cores, avx2; torch 2; 2026-01-02 (two), 2026-01-03 (one, three)"
    assert report.measured(loaded) == f"{said}; b, 2 cores, avx2; torch 2; 2026-01-02 (four)"


def test_bars_are_means_and_the_best_method_is_on_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    rows = [
        {"group": "g", "arm": arm, "seeds": [{"few": few + d, "balanced": 0.9, "top1": few} for d in (-0.1, 0.0, 0.1)]}
        for arm, few in (("plain", 0.2), ("good", 0.5), ("best", 0.7))
    ]
    draw_long_tail({"rows": rows}, tmp_path / "tail.png")
    few, balanced = drawn[0].axes
    assert [label.get_text() for label in few.get_yticklabels()] == ["plain", "best", "good"]
    assert [bar.get_width() for bar in few.patches] == pytest.approx([20, 70, 50])
    assert [bar.get_width() for bar in balanced.patches] == pytest.approx([90, 90, 90])
    assert few.collections[1].get_offsets().tolist() == [[pytest.approx(value), 1] for value in (60, 70, 80)]
    draw_simmim({"rows": [*rows, {**rows[2], "group": "h"}]}, tmp_path / "simmim.png")
    first, second = drawn[1].axes
    assert [bar.get_width() for bar in first.patches] == pytest.approx([20, 50, 70])
    assert [(bar.get_width(), bar.get_y() + 0.35) for bar in second.patches] == [pytest.approx((70, 2))]


def test_paragraphs_and_lists_are_wrapped_and_tables_are_not() -> None:
    long = "word " * 40
    lines = wrapped(f"## {long}\n\n{long}\n\n- {long}\n  more\n- b\n\n| {long} |\n|---|\n").splitlines()
    paragraph = ["word " * 23 + "word", "word " * 15 + "word"]
    assert lines[2:4] == paragraph
    assert lines[5:8] == [f"- {'word ' * 22}word", f"  {'word ' * 16}word more", "- b"]
    assert (lines[0], lines[9:]) == (f"## {long}", [f"| {long} |", "|---|"])


def test_a_missing_file_is_named_with_the_command_that_writes_it(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", results)
    monkeypatch.setattr(report, "DOCS", tmp_path)
    monkeypatch.setattr(
        report, "whole", lambda folder, figures: f"{report.load('simmim', folder)['date']} {figures.name}"
    )
    assert report.main() == 0
    assert (tmp_path / "results.md").read_text() == "2026-01-02 img"
    (results / "evidence_simmim.json").unlink()
    assert report.main() == 1
    assert "python -m benchmarks.evidence --only simmim writes it" in capsys.readouterr().err
