"""Write the pages' tables and README's chart from results/*.json: `python -m benchmarks.report`."""

import json
from pathlib import Path
from typing import Any

from benchmarks import charts
from benchmarks import served_tables as served
from benchmarks.commands import no_options
from benchmarks.harness import RESULTS, ROOT, name_on
from benchmarks.kernels import tables as kernels
from benchmarks.markdown import beside, conditions, table
from benchmarks.serving import table as serving

README = ROOT / "README.md"
WITHOUT = "Against the same weights in PyTorch's own convolutions"
OPENVINO = "Against the same weights in OpenVINO"
PROCESSORS = ("", "_amx")  # as harness.name_here names their files
BEGIN, END = "<!-- results: python -m benchmarks.report -->", "<!-- end of results -->"


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def inference_table(results: list[dict[str, Any]]) -> list[str]:
    """The whole network by runtime, two columns for each processor."""
    what = f"{results[0]['arch']} at {results[0]['image_size']} px on the CPU, fp32 or as named"
    rows = []
    for same in zip(*(result["rows"] for result in results), strict=True):
        ((runtime, batch),) = {(row["runtime"], row["batch"]) for row in same}
        cells = [runtime, str(batch)]
        for row in same:
            times = "{median:.0f} ({p20:.0f} to {p80:.0f})".format(**row["ms"])
            cells += [times, f"{row['ratio_to_openvino_fp32']:.2f}"]
        rows.append(cells)
    processors = [result["machine"]["cpu"].partition("(")[0].split()[0] for result in results]
    columns = [column for cpu in processors for column in (f"{cpu}: ms, median (p20 to p80)", "x OpenVINO fp32")]
    title = f"**{what}** ({'. '.join(map(conditions, results))})"
    return [title, "", *table(["runtime", "batch", *columns], rows)]


def depthwise_table(result: dict[str, Any]) -> list[str]:
    peers = [name for name in result["rows"][0]["ms"] if name != "widefield"]
    lines = [f"**The depthwise layers on the CPU** (bias and ReLU fused, ms; {conditions(result)})", ""]
    rows = []
    for row in result["rows"]:
        shape = f"{row['channels']}, {row['size']}, {row['kernel']}"
        times = [f"{row['ms'][name]['median']:.2f}" if name in row["ms"] else "none" for name in ("widefield", *peers)]
        rows.append([shape, row["dtype"], str(row["batch"]), *times, f"{row['ratio_to_best_peer']:.2f}"])
    return lines + table(["C, H, K", "dtype", "batch", "Widefield", *peers, "x the best of them"], rows)


def gradients_table(result: dict[str, Any]) -> list[str]:
    """Both gradients of each layer beside PyTorch's, and a training step."""
    peers = [name for name in result["rows"][0]["ms"] if name != "widefield"]
    lines = [f"**The gradients on the CPU** (batch {result['rows'][0]['batch']}, ms; {conditions(result)})", ""]
    rows = []
    for row in result["rows"]:
        shape = f"{row['channels']}, {row['size']}, {row['kernel']}"
        times = [f"{row['ms'][name]['median']:.2f}" for name in ("widefield", *peers)]
        rows.append([shape, row["dtype"], row["gradient"], *times, f"{row['ratio_to_best_peer']:.3f}"])
    lines += table(["C, H, K", "dtype", "gradient", "Widefield", *peers, "x the best of them"], rows)
    for row in result["training"]:
        ours, theirs = row["ms"]["widefield"]["median"], row["ms"]["eager channels_last"]["median"]
        step = f"A training step of {row['arch']}, {row['dtype']}, batch {row['batch']}, {row['image_size']} px"
        both = f"{ours:.0f} ms with the operator, {theirs:.0f} ms with PyTorch's convolution ({ours / theirs:.2f})"
        lines += ["", f"{step}: {both}."]
    return lines


def training_images_table(result: dict[str, Any]) -> list[str]:
    """Images a second, and as a ratio to timm's."""
    what = "published: crops from 8 % of the area on, RandAugment, erasing; crops: from 25 % on"
    lines = [
        f"**A training's images**, images/s of one process, {result['image_size']} px, {what} ({conditions(result)})",
        "",
    ]
    names = list(result["rows"][0]["images_per_s"])
    rows = []
    for row in result["rows"]:
        speeds = [f"{row['images_per_s'][name]:.1f} ({row['x_timm'][name]:.2f})" for name in names]
        rows.append([row["file"], row["recipe"], "{} x {}".format(*row["decoded"]), *speeds])
    return lines + table(["file", "recipe", "decoded to", *(f"{name} (x timm)" for name in names)], rows)


def comparison_table(result: dict[str, Any]) -> list[str]:
    lines = [f"**Counted and timed, one image, beside what is published** ({result['form']}; {conditions(result)})", ""]
    header = ["architecture", "px", "M parameters (published)", "G MACs (published)", "CPU, ms", "top-1 published, %"]
    rows = []
    for row in result["rows"]:
        published = row["published"] or {}
        same_size = published.get("image_size") == row["image_size"]
        accuracy = [str(published["top1"])] if published.get("top1") else []
        if published.get("top1_from_22k"):
            accuracy.append(f"{published['top1_from_22k']} from ImageNet-22K")
        cells = [
            row["arch"],
            str(row["image_size"]),
            f"{row['parameters'] / 1e6:.2f}" + beside(published.get("parameters_m")),
            f"{row['macs'] / 1e9:.3f}" + beside(published.get("gmacs") if same_size else None),
            f"{row['latency_ms']['cpu']:.0f}" if "cpu" in row["latency_ms"] else "-",
            ", ".join(accuracy) or "none",
        ]
        rows.append(cells)
    return lines + table(header, rows)


def gpu_tables(newest: dict[str, Any], before: dict[str, Any]) -> list[list[str]]:
    """A GPU's tables. `before`, an earlier run, has batch 1; only NaN and bias handling differ.

    The variants are of the run that has more of them. What is not measured yet has no table.
    """
    others = {"native": kernels.native_table, "served_layout": kernels.layout_table}
    measured = {make: RESULTS / f"{name_on(newest['gpu'], name)}.json" for name, make in others.items()}
    return [
        kernels.stage_table(newest),
        kernels.goal_table(newest, before),
        kernels.batch_one_table(before),
        kernels.variant_table(max(newest, before, key=lambda result: len(result["variants"]))),
        *(make(json.loads(path.read_text())) for make, path in measured.items() if path.exists()),
        kernels.loss_table(newest),
        kernels.end_to_end_table(load("end_to_end_nvidia_h200")),
    ]


def pages() -> dict[Path, list[list[str]]]:
    """The tables of each page, between its two marks."""
    h200 = load("kernels_nvidia_h200")
    return {
        README: [
            kernels.stage_table(h200),
            inference_table([load(f"cpu_inference_replknet_31b{processor}") for processor in PROCESSORS]),
            served.serving_table(load("serving_overhead")),
            served.demo_line(load("demo")),
        ],
        ROOT / "docs" / "kernels.md": [
            *(depthwise_table(load(f"kernels_cpu{processor}")) for processor in PROCESSORS),
            gradients_table(load("gradients_cpu")),
            *gpu_tables(h200, load("kernels_nvidia_h200_before")),
        ],
        ROOT / "docs" / "client.md": [served.transports_table(load("transports"))],
        ROOT / "docs" / "operations.md": [served.faults_table(load("faults"))],
        ROOT / "docs" / "serving.md": [
            served.overload_table(load("overload")),
            served.steps_table(load("serving_overhead"), "one image at a time"),
            served.steps_table(load("overload"), f"in a closed loop of {load('overload')['rows'][0]['peak_callers']}"),
            served.first_request_table(load("first_request")),
            served.instances_table(load("instances")),
            served.preprocess_table(load("preprocess")),
            serving.lines(load("serving"), conditions(load("serving"))),
            serving.lines(load("serving_plain"), conditions(load("serving_plain")), WITHOUT),
            serving.lines(load("serving_openvino"), conditions(load("serving_openvino")), OPENVINO),
        ],
        ROOT / "docs" / "training.md": [
            training_images_table(load("training_images")),
            comparison_table(load("compare")),
        ],
    }


def written(page: Path, tables: list[list[str]]) -> str:
    """The page's text with these tables."""
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    body = "\n\n".join("\n".join(lines) for lines in tables)
    return f"{before}{BEGIN}\n\n{body}\n\n{END}{after}"


def main() -> None:
    for page, tables in pages().items():
        page.write_text(written(page, tables))
        print(f"wrote {page.relative_to(ROOT)}")
    charts.draw(load("kernels_nvidia_h200"), load("cpu_inference_replknet_31b"))
    print(f"wrote {charts.CHART.relative_to(ROOT)}")


if __name__ == "__main__":
    no_options(__doc__, __spec__)
    main()
