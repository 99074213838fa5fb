"""The roofline picture of one results file: FLOP/s over FLOPs on valid taps per byte, with that run's ceilings."""

from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT
from benchmarks.kernels.candidates import NATIVE, OURS
from benchmarks.kernels.layers import PASSES, Layer

PICTURES = ROOT / "docs" / "img"
COLOURS = {OURS: "tab:green", NATIVE: "lightgray", "cudnn channels_last benchmark": "tab:blue"}
MARKERS = dict(zip(PASSES, "os^", strict=True))


def points(document: dict[str, Any], dtype: str) -> list[dict[str, Any]]:
    """{"candidate", "pass", "intensity" in FLOP/byte, "tflops"} of each row of a type that has a speed."""
    found = []
    for row in document["rows"]:
        if row["dtype"] != dtype or "wrong" in row:
            continue
        layer = Layer(*(row[name] for name in ("batch", "channels", "size", "kernel", "dtype")))
        for name in COLOURS:
            result = row["candidates"].get(name, {})
            if "ms" in result:
                tflops = layer.flops / result["ms"]["median"] / 1e9
                point = {"candidate": name, "pass": row["pass"], "intensity": layer.flops / layer.bytes}
                found.append(point | {"tflops": tflops})
    return found


def draw(document: dict[str, Any], name: str, dtype: str = "bfloat16", folder: Path = PICTURES) -> Path:
    """Write docs/img/<name>_roofline.png. Raises `ValueError` if the document has no speed of that type."""
    found = points(document, dtype)
    if not found:
        raise ValueError(f"{name} has no row in {dtype} with a speed: nothing to draw")
    import matplotlib.figure

    bandwidth, peak = document["ceilings"]["bandwidth"] / 1e12, document["ceilings"]["peak"][dtype] / 1e12
    figure = matplotlib.figure.Figure(figsize=(10.5, 4.8))
    axes = figure.subplots()
    ends = [0.5 * min(p["intensity"] for p in found), 2 * max(p["intensity"] for p in found)]
    ridge = peak / bandwidth
    xs = sorted({ends[0], min(max(ridge, ends[0]), ends[1]), ends[1]})
    axes.plot(xs, [min(peak, bandwidth * x) for x in xs], color="black")
    for candidate, colour in COLOURS.items():
        for which, marker in MARKERS.items():
            group = [p for p in found if (p["candidate"], p["pass"]) == (candidate, which)]
            at = [p["intensity"] for p in group], [p["tflops"] for p in group]
            axes.scatter(*at, color=colour, marker=marker, s=28, label=f"{candidate}, {which}" if group else None)
    axes.set(xscale="log", yscale="log", xlabel="FLOP on valid taps a byte", ylabel="TFLOP/s on valid taps")
    axes.set_title(f"{document['gpu']['name']}, {dtype}: {bandwidth:.2f} TB/s copied, {peak:.0f} TFLOP/s in a product")
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}_roofline.png"
    figure.savefig(path, dpi=100)
    return path
