"""Write docs/results.md and its charts from results/evidence_*.json: `python -m benchmarks.evidence.report`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import markdown
from benchmarks.commands import no_options
from benchmarks.evidence.charts import draw_long_tail, draw_simmim
from benchmarks.evidence.spread import Spread, difference, spread, values_of
from benchmarks.evidence.words import HEAD, WORDS
from benchmarks.harness import RESULTS, ROOT
from benchmarks.markdown import conditions, wrapped

DOCS = ROOT / "docs"
SHOTS = ("balanced", "many", "medium", "few")


def load(name: str, results: Path) -> dict[str, Any]:
    """Read one experiment's results. Raises `FileNotFoundError` with the command that writes the file."""
    path = results / f"evidence_{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: python -m benchmarks.evidence --only {name} writes it")
    return json.loads(path.read_text())


def groups(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        found.setdefault(row["group"], []).append(row)
    return found


def percent(value: Spread) -> str:
    return f"{100 * value.mean:.1f} ± {100 * value.std:.1f} ({100 * value.least:.1f} to {100 * value.most:.1f})"


def points(value: Spread) -> str:
    return f"{100 * value.mean:+.1f} ± {100 * value.std:.1f}"


def seconds(row: dict[str, Any]) -> str:
    """The seeds' median of a run's wall time and, after a slash, of its thread's time, as text.

    A median, because a seed may have been paused or resumed. The runs that it starts from are added.
    """
    cells = []
    for unit in ("seconds", "processor_seconds"):
        before = median(values_of(row, f"{unit}_before"))
        cells.append(f"{median(values_of(row, unit)):.0f}" + (f" + {before:.0f}" if before else ""))
    return " / ".join(cells)


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    """A table between empty lines."""
    return ["", *markdown.table(header, rows), ""]


def compared(rows: list[dict[str, Any]], metric: str) -> list[list[str]]:
    """[arm, accuracy, difference from the first arm, verdict, seconds] of each arm."""
    return [[row["arm"], percent(spread(row, metric)), *gained(row, rows[0], metric), seconds(row)] for row in rows]


def gained(row: dict[str, Any], baseline: dict[str, Any], metric: str) -> list[str]:
    """[difference from the baseline, verdict]."""
    change = difference(row, baseline, metric)
    return ["", "baseline"] if row is baseline else [points(change), change.verdict()]


def top1_tables(result: dict[str, Any]) -> list[str]:
    lines = []
    for group, rows in groups(result).items():
        lines += ["", f"**{group}**"]
        lines += table(["", "top-1, %", "gained, points", "", "seconds"], compared(rows, "top1"))
    return lines


def long_tail_table(result: dict[str, Any]) -> list[str]:
    rows = result["rows"]
    cells = []
    for row in rows:
        means = [f"{100 * spread(row, metric).mean:.1f} ± {100 * spread(row, metric).std:.1f}" for metric in SHOTS[1:3]]
        cells.append([row["arm"], *(percent(spread(row, m)) for m in ("top1", "balanced")), *means])
        cells[-1] += [percent(spread(row, "few")), *gained(row, rows[0], "few"), seconds(row)]
    header = ["", "overall, %", "balanced, %", "many, %", "medium, %", "few, %", "few gained, points", "", "seconds"]
    return table(header, cells)


def robustness_tables(result: dict[str, Any]) -> list[str]:
    lines = []
    for group, rows in groups(result).items():
        cells = []
        for row in rows:
            change = difference(row, rows[0], "clean")
            against = "" if row is rows[0] else f"{points(change)}, {change.verdict()}"
            accuracies = [percent(spread(row, metric)) for metric in ("clean", "fgsm", "pgd", "apgd")]
            cells.append([row["arm"], accuracies[0], against, *accuracies[1:], seconds(row)])
        lines += ["", f"**{group}**"]
        lines += table(["", "clean, %", "clean gained, points", "FGSM, %", "PGD-20, %", "APGD-CE, %", "seconds"], cells)
    return lines


def agreeing_steps(row: dict[str, Any]) -> int:
    """The number of first steps in which the operators' loss equals the references' to 1e-6; the least of all seeds."""
    fewest = []
    for curves in (seed["losses"] for seed in row["seeds"]):
        pairs = zip(curves["operator"], curves["reference"], strict=True)
        agrees = [abs(a - b) <= 1e-6 for a, b in pairs]
        fewest.append(agrees.index(False) if False in agrees else len(agrees))
    return min(fewest)


def kernel_table(result: dict[str, Any]) -> list[str]:
    cells = []
    for group, rows in groups(result).items():
        exact = next(row for row in rows if row["arm"] == "float64")
        for row in rows:
            curves = [seed["losses"] for seed in row["seeds"]]
            first = max(abs(curve["operator"][0] - curve["reference"][0]) for curve in curves)
            largest = [[seed["largest"][name] for seed in row["seeds"]] for name in ("operator", "pytorch")]
            pairs = zip(curves, (seed["losses"] for seed in exact["seeds"]), strict=True)
            rounding = max(
                abs(a - b)
                for curve, other in pairs
                for a, b in zip(curve["reference"], other["reference"], strict=True)
            )
            numbers = [f"{agreeing_steps(row)} of {len(curves[0]['reference'])}"]
            numbers += [f"{first:.1e}", *(f"{max(values):.1e} ({median(values):.1e})" for values in largest)]
            against_exact = f"{rounding:.1e}" if row["arm"] == "float32" else ""
            cells.append([group, row["arm"], *numbers, against_exact, seconds(row)])
    header = [
        "run",
        "type",
        "steps that agree to 1e-6",
        "operators, first step",
        "operators, largest (median seed's)",
        "PyTorch's convolution, largest (median seed's)",
    ]
    return table([*header, "the references' own float32 against float64, largest", "seconds, all three"], cells)


SECTIONS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "simmim": top1_tables,
    "long_tail": long_tail_table,
    "randaugment": top1_tables,
    "robustness": robustness_tables,
    "kernels": kernel_table,
}


IN_SHORT = {
    "simmim": ("Pre-training", "top1", "top-1"),
    "long_tail": ("Long tail", "few", "classes of fewer than 20 images"),
    "randaugment": ("RandAugment", "top1", "top-1"),
    "robustness": ("Attacked", "apgd", "accuracy under APGD-CE"),
}


def summary(rows: list[dict[str, Any]], metric: str) -> str:
    """One sentence: which arms gain, which cost, and which show no difference from the first."""
    changes = [(row["arm"], difference(row, rows[0], metric)) for row in rows[1:]]
    said = []
    for verdict in dict.fromkeys(change.verdict() for _, change in changes):
        arms = [f"{arm} ({points(change)})" for arm, change in changes if change.verdict() == verdict]
        said.append(f"*{verdict}*: {', '.join(arms)}")
    return f"against {rows[0]['arm']} {'; '.join(said)}"


def summaries(name: str, result: dict[str, Any]) -> list[str]:
    """A line for each table of the section, in percentage points."""
    if name == "kernels":
        said = [
            f"{row['group']} {agreeing_steps(row)} of {len(row['seeds'][0]['losses']['reference'])}"
            for row in result["rows"]
            if row["arm"] == "float64"
        ]
        return [f"- **Operators for references**, float64, first steps whose loss agrees to 1e-6: {', '.join(said)}."]
    title, metric, unit = IN_SHORT[name]
    return [f"- **{title}**, {group}, {unit}: {summary(rows, metric)}." for group, rows in groups(result).items()]


def minutes_in_all(loaded: dict[str, dict[str, Any]], unit: str) -> float:
    """Minutes of all runs, two at a time; a run that is in several tables, or that others start from, counts once."""
    passed: dict[tuple[str, ...], float] = {(): 0.0}  # runs, each begun from the one before -> seconds of them all
    for seed in (seed for result in loaded.values() for row in result["rows"] for seed in row["seeds"]):
        runs = tuple(seed["runs"])
        passed |= {runs[:-1]: seed[f"{unit}_before"], runs: seed[f"{unit}_before"] + seed[unit]}
    before = {
        runs: next(runs[:end] for end in range(len(runs) - 1, -1, -1) if runs[:end] in passed)
        for runs in passed
        if runs
    }
    return sum(passed[runs] - passed[start] for runs, start in before.items()) / 2 / 60


def measured(loaded: dict[str, dict[str, Any]]) -> str:
    """The machine, the versions and the day of each experiment, which are measured separately."""
    days: dict[str, dict[str, list[str]]] = {}  # by machine and versions
    for name, result in loaded.items():
        days.setdefault(conditions({**result, "date": ""}), {}).setdefault(result["date"], []).append(name)
    return "; ".join(
        where + ", ".join(f"{day} ({', '.join(names)})" for day, names in sorted(each.items()))
        for where, each in days.items()
    )


def whole(results: Path, figures: Path) -> str:
    """Return the text of docs/results.md; draws the charts into `figures`."""
    loaded = {name: load(name, results) for name in SECTIONS}
    draw_simmim(loaded["simmim"], figures / "evidence_simmim.png")
    draw_long_tail(loaded["long_tail"], figures / "evidence_long_tail.png")
    spent = {unit: round(minutes_in_all(loaded, unit)) for unit in ("seconds", "processor_seconds")}
    seeds = len(loaded["simmim"]["rows"][0]["seeds"])
    lines = [HEAD.format(conditions=measured(loaded), seeds=seeds, **spent)]
    lines += ["## In short", "", "Points of accuracy gained, mean ± standard deviation over the seeds.", ""]
    lines += [line for name, result in loaded.items() for line in summaries(name, result)]
    for name, write in SECTIONS.items():
        lines += ["", WORDS[name].strip(), *write(loaded[name])]
    return wrapped("\n".join(lines))


def main() -> int:
    try:
        text = whole(RESULTS, DOCS / "img")
    except FileNotFoundError as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    (DOCS / "results.md").write_text(text)
    return 0


if __name__ == "__main__":
    no_options(__doc__, __spec__)
    sys.exit(main())
