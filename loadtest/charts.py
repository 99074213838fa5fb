"""The report's charts, as SVG text."""

import io
from collections.abc import Sequence
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.results import latency_objectives, measured

INK, FAINT, MISS = "#24292f", "#d0d7de", "#cf222e"
PERCENTILES = (("p50_ms", "#0969da"), ("p95_ms", "#bf8700"), ("p99_ms", "#8250df"))
MARKS = {"HTTP": ("o", "-"), "gRPC": ("s", "--")}
PARTS = ("#0969da", "#54aeff", "#1a7f37", "#6fdd8b", "#bf8700", "#eac54f", "#8250df", "#d8b9ff")

pyplot.rcParams.update(
    {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "loadtest",  # equal charts are equal bytes
        "font.family": "sans-serif",
        "font.sans-serif": ["system-ui", "DejaVu Sans"],
        "font.size": 11,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.grid": True,
        "grid.color": FAINT,
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
)


def to_svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _log_milliseconds(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    low, high = axes.get_ylim()
    if high / low < 300:  # few decades: label 2 and 5 too
        axes.yaxis.set_minor_locator(matplotlib.ticker.LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}")
    else:
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def latency_against_throughput(results: Sequence[dict[str, Any]], capacity: float | None = None) -> str:
    """Plot a point for each measured phase, percentile and protocol, ringed in red if a request failed.

    The lines go through the medians of phases of equal level.
    """
    figure, axes = pyplot.subplots(figsize=(9, 4.4), layout="constrained")
    phases = sorted((phase for result in results for phase in measured(result)), key=lambda phase: phase["level"])
    names = sorted({name for phase in phases for name, row in phase["protocols"].items() if row["answered"]})
    climbing = len(results) > 1 or results[0]["shape"] == "step"  # else the order of the points means nothing
    for name in names:
        by_level: dict[float, list[dict[str, Any]]] = {}
        for phase in phases:
            if (row := phase["protocols"][name])["answered"]:
                by_level.setdefault(phase["level"], []).append(row)
        rows = [row for group in by_level.values() for row in group]
        mark, line = MARKS.get(name, ("o", "-"))
        for key, colour in PERCENTILES:
            label = f"{key[:3]} {name}" if len(names) > 1 else key[:3]
            axes.plot(
                [row["answered_per_s"] for row in rows], [row[key] for row in rows], mark, color=colour, markersize=5
            )
            x = [median(row["answered_per_s"] for row in group) for group in by_level.values()]
            y = [median(row[key] for row in group) for group in by_level.values()]
            style = line if climbing else "none"
            axes.plot(x, y, linestyle=style, marker="" if climbing else mark, color=colour, markersize=5, label=label)
        failed = [row for row in rows if row["failed"]]
        if failed:
            x = [row["answered_per_s"] for row in failed for _ in PERCENTILES]
            y = [row[key] for row in failed for key, _ in PERCENTILES]
            axes.plot(x, y, "o", color=MISS, fillstyle="none", markersize=10, label="with errors" * (name == names[0]))
    limit = latency_objectives(results[0]).get("p99")
    if limit:
        axes.axhline(limit, color=MISS, linewidth=1, linestyle=":", label=f"p99 objective {limit:g} ms")
    if capacity:
        axes.axvline(capacity / len(names), color=INK, linewidth=1, linestyle=":", label="capacity")
    axes.set_xlabel("answers a second" + (", each protocol" if len(names) > 1 else ""))
    axes.set_ylabel("latency, ms")
    axes.set_xlim(0, 1.05 * max(row["answered_per_s"] for phase in phases for row in phase["protocols"].values()))
    _log_milliseconds(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return to_svg(figure)


def over_time(result: dict[str, Any]) -> str:
    """Latency and answers a second over the test; warm-up is shaded."""
    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(9, 5), sharex=True, layout="constrained", height_ratios=(3, 2)
    )
    names = sorted({window["protocol"] for window in result["windows"]})
    end = sum(phase["seconds"] for phase in result["phases"])
    failures = False
    for name in names:
        windows = [window for window in result["windows"] if window["protocol"] == name]
        times = [window["from_s"] for window in windows] + [end]
        lengths = [min(result["window_s"], end - window["from_s"]) for window in windows]
        _, line = MARKS.get(name, ("o", "-"))
        suffix = f" {name}" if len(names) > 1 else ""
        for key, colour in (PERCENTILES[0], PERCENTILES[2]):
            values = [window[key] if window[key] is not None else float("nan") for window in windows]
            top.plot(
                times, [*values, values[-1]], line, color=colour, label=f"{key[:3]}{suffix}", drawstyle="steps-post"
            )
        rates = [window["finished"] / length for window, length in zip(windows, lengths, strict=True)]
        bottom.step(times, [*rates, rates[-1]], line, where="post", color="#1a7f37", label=f"answers{suffix}")
        failed = [window["failed"] / length for window, length in zip(windows, lengths, strict=True)]
        if any(failed):
            failures = True
            bottom.step(times, [*failed, failed[-1]], line, where="post", color=MISS, label=f"errors{suffix}")
    start = 0.0
    for phase in result["phases"]:
        for axes in (top, bottom):
            if phase["measured"]:
                axes.axvline(start, color=FAINT, linewidth=1)
            else:
                axes.axvspan(start, start + phase["seconds"], color=FAINT, alpha=0.4, linewidth=0)
        if len(result["phases"]) < 9:
            # The name of the warm-up, which is short, ends where the first phase's begins.
            x, offset, side = (start, 3, "left") if phase["measured"] else (start + phase["seconds"], -3, "right")
            where = {"xycoords": top.get_xaxis_transform(), "textcoords": "offset points"}
            top.annotate(phase["name"], (x, 1.01), (offset, 0), **where, fontsize=9, va="bottom", ha=side)
        start += phase["seconds"]
    _log_milliseconds(top)
    top.set_ylabel("latency, ms")
    bottom.set_ylabel("a second")
    bottom.set_ylim(bottom=0)
    bottom.set_xlim(0, end)
    bottom.set_xlabel(
        "seconds after the start"
        + ("; latencies and errors count when a request was due" if result["open_loop"] else "")
    )
    top.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    if failures or len(names) > 1:
        bottom.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    else:
        bottom.set_ylabel("answers a second")
    return to_svg(figure)


def where_the_time_goes(rows: Sequence[tuple[str, dict[str, float]]]) -> str:
    """A bar for each phase: mean milliseconds by part, the server's steps first, then the time outside the server."""
    parts = list(dict.fromkeys(part for _, row in rows for part in row))
    figure, axes = pyplot.subplots(figsize=(9, 1.6 + 0.42 * len(rows) + 0.12 * len(parts)), layout="constrained")
    left = [0.0] * len(rows)
    colours = iter(PARTS * 3)
    for part in parts:
        widths = [row.get(part, 0.0) for _, row in rows]
        colour = FAINT if part == "outside the server" else next(colours)
        axes.barh([name for name, _ in rows], widths, left=left, height=0.6, color=colour, label=part)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for index, total in enumerate(left):
        axes.text(total, index, f" {total:.1f}", va="center", fontsize=10)
    axes.set_xlim(0, 1.12 * max(left))
    axes.set_ylim(max(len(rows), 3) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("mean milliseconds of a request")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return to_svg(figure)
