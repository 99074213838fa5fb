"""The goals on an H200 in bfloat16, and how far one run has met them."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.kernels.candidates import OURS
from benchmarks.kernels.layers import BLOCKS, PASSES, replknet_31b

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Goal:
    """A goal. `value(layers, losses)` is None if the run has not measured it. `most`: the goal is an upper limit."""

    name: str
    unit: str
    goal: float
    stretch: float | None
    value: Callable[[Rows, Rows], float | None]
    most: bool = False

    def verdict(self, value: float | None) -> str:
        if value is None:
            return "not measured"
        limits = (self.goal, self.stretch)
        met = [limit is not None and (value <= limit if self.most else value >= limit) for limit in limits]
        return "stretch met" if met[1] else "met" if met[0] else "NOT MET"


def stage_rows(layers: Rows, which: str, batch: int = 64) -> Rows | None:
    """The rows of RepLKNet-31B's four stages in bfloat16, or None if one is missing or wrong."""
    found = []
    for layer in replknet_31b(batch):
        fields = asdict(layer) | {"pass": which}
        found += [row for row in layers if "wrong" not in row and fields.items() <= row.items()]
    return found if len(found) == len(BLOCKS) else None


def median_ms(row: dict[str, Any]) -> float:
    timing = row["candidates"][OURS]["ms"]
    return timing["median"] if isinstance(timing, dict) else timing.median


def _stage_us(stage: int) -> Callable[[Rows, Rows], float | None]:
    def value(layers: Rows, _: Rows) -> float | None:
        rows = stage_rows(layers, PASSES[0])
        return None if rows is None else 1000 * median_ms(rows[stage])

    return value


def _all_layers_ms(layers: Rows, _: Rows) -> float | None:
    rows = stage_rows(layers, PASSES[0])
    return None if rows is None else sum(n * median_ms(row) for n, row in zip(BLOCKS, rows, strict=True))


def _least(figure: str, which: str, batch: int = 64) -> Callable[[Rows, Rows], float | None]:
    """A goal's value: the least `figure` of the four stages."""

    def value(layers: Rows, _: Rows) -> float | None:
        rows = stage_rows(layers, which, batch)
        figures = [row[figure] for row in rows or []]
        return min(figures) if figures and None not in figures else None

    return value


def _loss(figure: str) -> Callable[[Rows, Rows], float | None]:
    def value(_: Rows, losses: Rows) -> float | None:
        figures = [row[figure] for row in losses if row["norm"] == "none" and row["batch"] == 128]
        return min(figures, default=None)

    return value


GOALS = [
    *(
        Goal(f"forward, stage {stage + 1}", "us", goal, stretch, _stage_us(stage), most=True)
        for stage, (goal, stretch) in enumerate([(230, 165), (55, 40), (15, 9), (6, 5)])
    ),
    Goal("forward, all 24 K x K layers of RepLKNet-31B", "ms", 0.86, 0.6, _all_layers_ms, most=True),
    Goal("forward over PyTorch native NCHW, worst stage", "x", 15, 25, _least("speedup_over_native", "forward")),
    Goal("forward over the best cuDNN, worst stage", "x", 5, 10, _least("speedup_over_best_cudnn", "forward")),
    Goal("grad_weight over PyTorch native, worst stage", "x", 30, 60, _least("speedup_over_native", "grad_weight")),
    Goal("batch 1 over PyTorch's best, worst stage", "x", 1, 5, _least("speedup_over_best_peer", "forward", 1)),
    Goal("masked-patch loss, of the copy bandwidth", "", 0.7, 0.9, _loss("of_copy")),
    Goal("masked-patch loss over eager", "x", 5, None, _loss("speedup_over_eager")),
]


def goal_rows(layers: Rows, losses: Rows) -> Rows:
    """Return every goal with the measured figure and "met", "stretch met", "NOT MET" or "not measured"."""
    rows = []
    for goal in GOALS:
        value = goal.value(layers, losses)
        sign = "<=" if goal.most else ">="
        measured = None if value is None else round(value, 3)
        rows.append(
            {"goal": goal.name, "unit": goal.unit, "wanted": f"{sign} {goal.goal}", "stretch": goal.stretch}
            | {"measured": measured, "verdict": goal.verdict(value)}
        )
    return rows


def goal_table(layers: Rows, losses: Rows) -> list[str]:
    lines = [f"{'goal on an H200, bfloat16, batch 64':46} {'wanted':>10} {'stretch':>8} {'measured':>10}"]
    for row in goal_rows(layers, losses):
        measured = "-" if row["measured"] is None else f"{row['measured']:g} {row['unit']}"
        stretch = row["stretch"] or ""
        lines.append(f"{row['goal']:46} {row['wanted']:>10} {stretch:>8} {measured:>10}  {row['verdict']}")
    return lines
