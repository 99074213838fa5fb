"""README's chart from results/*.json: the K x K layers on a GPU, the whole network on a CPU."""

from typing import Any

from benchmarks.harness import ROOT
from benchmarks.kernels.candidates import NATIVE
from benchmarks.kernels.tables import stages, us

CHART = ROOT / "docs" / "img" / "speed.png"
OUR_COLOUR, OTHERS = "tab:green", ("0.82", "0.65", "0.45")


def gpu_panel(axes: Any, result: dict[str, Any]) -> None:
    """Microseconds by stage, a bar for each candidate; logarithmic: they span three powers of ten."""
    forward = [passes[0] for passes in stages(result, 64)]
    ways: dict[str, list[float | None]] = {"Widefield": [us(row) for row in forward]}
    ways["whole-image Toeplitz + bmm"] = [_fastest(row, "toeplitz") for row in forward]
    ways["PyTorch's own kernel"] = [us(row, NATIVE) for row in forward]
    ways["cuDNN's best"] = [_fastest(row, "cudnn") for row in forward]
    height = 0.8 / len(ways)
    for index, ((way, times), colour) in enumerate(zip(ways.items(), (OUR_COLOUR, *OTHERS), strict=True)):
        for stage, time in enumerate(times):
            if time is None:
                continue
            place = stage + (index - (len(ways) - 1) / 2) * height
            axes.barh(place, time, height, color=colour, label=way if time == next(filter(None, times)) else None)
            axes.text(time, place, f" {time:,.0f}" if time >= 100 else f" {time:.1f}", va="center", fontsize=7)
    names = [f"{row['kernel']} x {row['kernel']}, {row['size']} px" for row in forward]
    axes.set(title="depthwise layers, batch 64, bf16: us (log scale)", xscale="log")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(right=8 * max(time for times in ways.values() for time in times if time))
    axes.invert_yaxis()
    axes.legend(fontsize=7, frameon=False, loc="lower right")


def cpu_panel(axes: Any, result: dict[str, Any], batch: int) -> None:
    """Milliseconds of the whole network by runtime."""
    rows = [row for row in result["rows"] if row["batch"] == batch]
    rows.sort(key=lambda row: row["ms"]["median"], reverse=True)
    names = [row["runtime"].replace("default precision", "as it comes (bf16)") for row in rows]
    medians = [row["ms"]["median"] for row in rows]
    axes.barh(names, medians, color=[OUR_COLOUR if name.startswith("Widefield") else OTHERS[0] for name in names])
    for name, value in zip(names, medians, strict=True):
        axes.text(value, name, f" {value:.0f}", va="center", fontsize=8)
    axes.set(title=f"RepLKNet-31B, batch {batch}, fp32 or as named: ms", xlim=(0, 1.2 * max(medians)))


def _fastest(row: dict[str, Any], kind: str) -> float | None:
    times = [us(row, name) for name, found in row["candidates"].items() if name.startswith(kind) and "ms" in found]
    return min(times, default=None)


def draw(gpu: dict[str, Any], cpu: dict[str, Any]) -> None:
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(11, 4.6), layout="constrained")
    halves: Any = figure.subfigures(1, 2)
    left, right = halves
    left.suptitle(f"one {gpu['gpu']['name']}", fontsize=11)
    right.suptitle(f"{cpu['machine']['cores']} cores of {cpu['machine']['cpu']}", fontsize=11)
    panels = [left.subplots(), *right.subplots(2, 1)]
    gpu_panel(panels[0], gpu)
    for axes, batch in zip(panels[1:], sorted({row["batch"] for row in cpu["rows"]}), strict=True):
        cpu_panel(axes, cpu, batch)
    for axes in panels:
        axes.title.set_fontsize(10)
        axes.tick_params(length=0, labelsize=8)
        axes.set_xticks([], minor=True)
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    CHART.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(CHART, dpi=100)
