"""The charts of docs/results.md: a mean and a dot for each seed."""

from pathlib import Path
from typing import Any

from benchmarks.evidence.statistics import spread, values_of

DOT = {"s": 10, "color": "black", "zorder": 3, "alpha": 0.6}


def draw_simmim(result: dict[str, Any], path: Path) -> None:
    """Held-out accuracy by arm, a panel for each share of the labels."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shares = list(dict.fromkeys(row["group"] for row in result["rows"]))
    figure, panels = plt.subplots(1, len(shares), figsize=(11, 2.6), squeeze=False)
    for axes, share in zip(panels[0], shares, strict=True):
        rows = [row for row in result["rows"] if row["group"] == share]
        _bars(axes, rows, "top1", share)
        if axes is not panels[0][0]:
            axes.set_yticklabels([])
    figure.suptitle("Held-out top-1, %, by share of the labels (bars: mean; dots: seeds)", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def draw_long_tail(result: dict[str, Any], path: Path) -> None:
    """Accuracy on the few-shot classes and of all classes, by method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    baseline, *methods = result["rows"]
    rows = [baseline, *sorted(methods, key=lambda row: -spread(row, "few").mean)]
    figure, panels = plt.subplots(1, 2, figsize=(11, 0.6 + 0.27 * len(rows)), sharey=True)
    for axes, metric, title in zip(
        panels, ("few", "balanced"), ("classes of fewer than 20 images", "all classes, balanced"), strict=True
    ):
        _bars(axes, rows, metric, title)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _bars(axes: Any, rows: list[dict[str, Any]], metric: str, title: str) -> None:
    names = [row["arm"] for row in rows]
    means = [100 * spread(row, metric).mean for row in rows]
    axes.barh(names, means, color=["lightgray"] + ["tab:green"] * (len(rows) - 1), height=0.7)
    for name, row in zip(names, rows, strict=True):
        values = [100 * value for value in values_of(row, metric)]
        axes.scatter(values, [name] * len(values), **DOT)
    seen = [100 * value for row in rows for value in values_of(row, metric)]
    room = max(1.0, max(seen) - min(seen))
    axes.set_xlim(max(0.0, min(seen) - 0.35 * room), max(seen) + 0.25 * room)
    for name, mean, row in zip(names, means, rows, strict=True):
        axes.text(100 * max(values_of(row, metric)) + 0.03 * room, name, f"{mean:.1f}", va="center", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first on top
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
