"""The charts of docs/results.md: a mean and a dot for each seed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.evidence.spread import spread, values_of

DOT = {"s": 10, "color": "black", "zorder": 3, "alpha": 0.6}


def draw_simmim(result: dict[str, Any], path: Path) -> None:
    """Held-out accuracy by arm, a panel for each share of the labels."""
    shares = list(dict.fromkeys(row["group"] for row in result["rows"]))
    arms = list(dict.fromkeys(row["arm"] for row in result["rows"]))
    with _chart(path, "Held-out top-1", len(shares), 2.6) as panels:
        for axes, share in zip(panels, shares, strict=True):
            _bars(axes, [row for row in result["rows"] if row["group"] == share], "top1", share, arms)
            if axes is not panels[0]:
                axes.set_yticklabels([])


def draw_long_tail(result: dict[str, Any], path: Path) -> None:
    """Accuracy on the few-shot classes and of all classes, by method."""
    baseline, *methods = result["rows"]
    rows = [baseline, *sorted(methods, key=lambda row: -spread(row, "few").mean)]
    titles = {"few": "classes of fewer than 20 images", "balanced": "all classes, balanced"}
    with _chart(path, "Held-out accuracy", len(titles), 0.6 + 0.27 * len(rows), sharey=True) as panels:
        for axes, (metric, title) in zip(panels, titles.items(), strict=True):
            _bars(axes, rows, metric, title, [row["arm"] for row in rows])


@contextmanager
def _chart(path: Path, what: str, count: int, height: float, sharey: bool = False) -> Iterator[Any]:
    """Yield `count` panels side by side, 11 x `height` inches; writes the file at the end of the block."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(11, height))
    yield figure.subplots(1, count, sharey=sharey, squeeze=False)[0]
    figure.suptitle(f"{what}, % (bars: mean; dots: seeds; axes begin above 0)", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def _bars(axes: Any, rows: list[dict[str, Any]], metric: str, title: str, arms: list[str]) -> None:
    """`arms` are the places from top to bottom; one that is not among `rows` stays empty."""
    seen = [100 * value for row in rows for value in values_of(row, metric)]
    room = max(1.0, max(seen) - min(seen))
    for row in rows:
        place = arms.index(row["arm"])
        values = [100 * value for value in values_of(row, metric)]
        mean = 100 * spread(row, metric).mean
        axes.barh(place, mean, color="tab:green" if place else "lightgray", height=0.7)
        axes.scatter(values, [place] * len(values), **DOT)
        axes.text(max(values) + 0.03 * room, place, f"{mean:.1f}", va="center", fontsize=8)
    axes.set_xlim(max(0.0, min(seen) - 0.35 * room), max(seen) + 0.25 * room)
    axes.set_ylim(len(arms) - 0.4, -0.6)  # the first on top
    axes.set_yticks(range(len(arms)), arms)
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
