"""The pages' tables and README's chart from results/*.json: `python -m benchmarks.report`."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import charts
from benchmarks.harness import RESULTS
from benchmarks.kernels import tables as kernels
from benchmarks.markdown import table
from benchmarks.serving import table as serving

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- results: python -m benchmarks.report -->", "<!-- end of results -->"


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def conditions(result: dict[str, Any]) -> str:
    """The machine and the versions of one results file."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {'/'.join(machine['instructions'])}; {versions}; {result['date']}"
    )


def inference_table(result: dict[str, Any]) -> list[str]:
    lines = [f"**{result['arch']} at {result['image_size']} px on the CPU, fp32** ({conditions(result)})", ""]
    rows = []
    for row in result["rows"]:
        ms = row["ms"]
        cell = f"{ms['median']:.0f} ({ms['p20']:.0f} to {ms['p80']:.0f})"
        rows.append([row["runtime"], str(row["batch"]), cell, f"{row['ratio_to_openvino_fp32']:.2f}"])
    return lines + table(["runtime", "batch", "ms, median (p20 to p80)", "x OpenVINO fp32"], rows)


def depthwise_table(result: dict[str, Any]) -> list[str]:
    peers = [name for name in result["rows"][0]["ms"] if name != "widefield"]
    lines = [f"**The depthwise layers on the CPU** (fp32, bias and ReLU fused, ms; {conditions(result)})", ""]
    rows = []
    for row in result["rows"]:
        shape = f"{row['channels']}, {row['size']}, {row['kernel']}"
        times = [f"{row['ms'][name]['median']:.2f}" for name in ("widefield", *peers)]
        rows.append([shape, str(row["batch"]), *times, f"{row['ratio_to_best_peer']:.2f}"])
    return lines + table(["C, H, K", "batch", "Widefield", *peers, "x the best of them"], rows)


def serving_table(result: dict[str, Any]) -> list[str]:
    lines = [f"**What serving adds**, one image at a time ({result['image']}; {conditions(result)})", ""]
    header = ["model", "bare pipeline, ms", "over gRPC, ms", "over HTTP, ms", "empty steps over gRPC, ms", "ready in"]
    rows = []
    for row in result["rows"]:
        bare, added = row["timings"]["bare"]["median"], row["added_ms"]
        grpc, http = (f"+{added[name]:.1f} ({100 * added[name] / bare:.1f} %)" for name in ("gRPC", "HTTP"))
        empty, ready = row["timings"]["empty"]["median"], row["seconds_to_ready"]
        rows.append([row["arch"], f"{bare:.1f}", grpc, http, f"{empty:.1f}", f"{ready:.1f} s"])
    return lines + table(header, rows)


def comparison_table(result: dict[str, Any]) -> list[str]:
    lines = [f"**Counted and timed, one image, beside what is published** ({result['form']}; {conditions(result)})", ""]
    header = ["architecture", "px", "M parameters (published)", "G MACs (published)", "CPU, ms", "top-1 published, %"]
    rows = []
    for row in result["rows"]:
        published = row["published"] or {}
        accuracy = [f"{published['top1']}"] if "top1" in published else ["none"]
        accuracy += [f"{published['top1_from_22k']} from ImageNet-22K"] if "top1_from_22k" in published else []
        cells = [row["arch"], str(row["image_size"])]
        for mine, theirs in ((f"{row['parameters'] / 1e6:.2f}", "parameters_m"), (f"{row['macs'] / 1e9:.3f}", "gmacs")):
            cells.append(mine + (f" ({published[theirs]})" if theirs in published else ""))
        rows.append([*cells, f"{row['latency_ms']['cpu']:.0f}", ", ".join(accuracy)])
    return lines + table(header, rows)


def overload_table(result: dict[str, Any]) -> list[str]:
    (row,) = result["rows"]
    lines = [f"**More than it can do**: {row['arch']}, {result['image']}, each request to be answered within"]
    lines += [f"{result['deadline_s']:g} s ({conditions(result)}). A closed loop of {row['peak_callers']} answers"]
    lines += [
        f"{row['peak_images_per_s']:.1f} images/s, {row['peak_over_bare']:.2f} times a bare loop of the same steps.",
        "",
    ]
    header = [
        "load, of the best",
        "answered in time, of the best",
        "in each turn",
        "p99 of those, ms",
        "turned away, p50 ms",
        "not in time",
    ]
    rows = []
    for load in row["open_loop"]:
        outcomes = load["outcomes"]
        missed = sum(count for kind, count in outcomes.items() if kind not in ("in time", "rejected"))
        rejected = outcomes.get("rejected", 0)
        away = f"{rejected} ({load['rejected_p50_ms']:.0f})" if rejected else "0"
        goodput, p99 = f"{load['goodput_of_peak']:.0%}", f"{load['in_time_p99_ms']:.0f}"
        each = ", ".join(f"{share:.0%}" for share in load["goodput_of_peak_each"])
        rows.append([f"{load['load']:g}", goodput, each, p99, away, str(missed)])
    return lines + table(header, rows)


def instances_table(result: dict[str, Any]) -> list[str]:
    """Two backbone instances of half the threads against one of all."""
    lines = [
        "**Two instances or one**: two backbone instances of half the threads against one of all, "
        f"{result['repeats']} turns of {result['seconds']:g} s each, images/s (p50, p99 in ms), medians "
        f"({conditions(result)})",
        "",
    ]
    rows = []
    for row in result["rows"]:
        cells = [
            f"{row[f'{name}_images_per_s']:.1f} ({row[f'{name}_p50_ms']:.0f}, {row[f'{name}_p99_ms']:.0f})"
            for name in ("two", "one")
        ]
        low, high = row["ratios"][0], row["ratios"][-1]
        rows.append([row["model"], str(row["callers"]), *cells, f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"])
    return lines + table(["model", "callers", "two", "one", "ratio of a turn (range)"], rows)


def preprocess_table(result: dict[str, Any]) -> list[str]:
    memory = result["memory_mib_12_mp"]
    lines = [f"**Preprocessing alone**, images/s of one thread, {result['image_size']} px ({conditions(result)})", ""]
    header = ["file", "pipeline", "images/s", "x Pillow", "grey levels from Pillow: average, most"]
    rows = []
    for kind in result["rows"]:
        for row in kind["rows"]:
            speed = (
                [f"{row['images_per_s']:.1f}", f"{row['ratio_to_pillow']:.2f}"] if "ms" in row else ["not equal", ""]
            )
            away = f"{row['mean_difference']:.2f}, {row['max_difference']}"
            rows.append([kind["file"], row["pipeline"], *speed, away])
    lines += table(header, rows)
    lines += ["", f"One 12-megapixel JPEG takes {memory['reduced']:.0f} MiB, decoded in full {memory['full']:.0f}."]
    return lines


def measured(name: str, lines: Callable[[dict[str, Any]], list[str]]) -> list[list[str]]:
    """No table of what has not been measured on this machine yet."""
    return [lines(load(name))] if (RESULTS / f"{name}.json").exists() else []


def faults_table(result: dict[str, Any]) -> list[str]:
    faults, restarts, soak = parts = [result[name] for name in ("faults", "restarts", "soak")]
    lines = [
        f"**What {faults['servers']} servers survive** ({conditions(result)}).",
        f"{faults['requests_per_s']:g} requests/s, half gRPC and half HTTP, each to be answered within",
        f"{faults['deadline_s']:g} s, `retries={faults['retries']}`.",
        "Other work ran beside: the counts hold, the times are too long." if any(p["warning"] for p in parts) else "",
        "",
    ]
    header = ["to one server", "through", "sent", "answered in time", "failed", "p50, p99, longest: ms", "back after"]
    rows = []
    left: Counter[str] = Counter()
    for row in faults["rows"]:
        left.update(row["left_over"])
        failed = ", ".join(f"{count} {kind}" for kind, count in row["failed"].items()) or "0"
        cells = [row["fault"], row["path"], str(row["sent"]), str(row["answered_in_time"]), failed]
        cells += [", ".join(f"{row[key]:.0f}" for key in ("p50_ms", "p99_ms", "longest_ms"))]
        cells += ["never" if row["back_s"] is None else f"{row['back_s']:.1f} s"]
        rows.append(cells)
    more = ", ".join(f"{name} {count}" for name, count in left.items())
    ways = ", ".join(f"{count} {way}" for way, count in restarts["ways"].items())
    counts = ", ".join(f"{name} {count} to {restarts['last'][name]}" for name, count in restarts["first"].items())
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in soak["outcomes"].items())
    rss = soak["rss_mib"]
    lines += [*table(header, rows), "", f"- More after these faults than before: {more}."]
    lines += [f"- **{restarts['restarts']} restarts** ({ways}), {restarts['seconds_median']:.1f} s each: {counts}."]
    lines += [f"- **{soak['requests']} requests** to one server: {outcomes}; {soak['requests_per_s']:.0f} requests/s,"]
    lines += [f"  p50 {soak['p50_ms']:.1f} ms, p99 {soak['p99_ms']:.1f} ms. Its memory: {rss['after_warm_up']:.1f} MiB"]
    lines += [
        f"  after the first tenth, {rss['at_the_end']:.1f} MiB in the last ({soak['rss_growth_percent']:+.2f} %)."
    ]
    return [line.replace("shm_files", "shared-memory files").replace("folders", "private folders") for line in lines]


def gpu_tables(newest: dict[str, Any], before: dict[str, Any]) -> list[list[str]]:
    """`before` reached batch 1 and all variants; its kernels find a NaN and add the bias in another way, no more."""
    return [
        kernels.stage_table(newest),
        kernels.goal_table(newest, before),
        kernels.batch_one_table(before),
        kernels.variant_table(before),
        kernels.loss_table(newest),
        kernels.end_to_end_table(load("end_to_end_nvidia_h200")),
    ]


def pages() -> dict[Path, list[list[str]]]:
    """The tables of each page, between its two marks."""
    h200 = load("kernels_nvidia_h200")
    return {
        README: [
            kernels.stage_table(h200),
            inference_table(load("cpu_inference_replknet_31b")),
            serving_table(load("serving_overhead")),
        ],
        ROOT / "docs" / "kernels.md": [
            depthwise_table(load("kernels_cpu")),
            *gpu_tables(h200, load("kernels_nvidia_h200_before")),
        ],
        ROOT / "docs" / "operations.md": [faults_table(load("faults"))],
        ROOT / "docs" / "serving.md": [
            overload_table(load("overload")),
            instances_table(load("instances")),
            *measured("preprocess", preprocess_table),
            *measured("serving", lambda result: serving.lines(result, conditions(result))),
        ],
        ROOT / "docs" / "training.md": [comparison_table(load("compare"))],
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
    main()
