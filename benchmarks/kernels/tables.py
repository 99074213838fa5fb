"""The tables of docs/kernels.md from a GPU's results files."""

from typing import Any

from benchmarks.kernels.candidates import NATIVE, OURS
from benchmarks.kernels.goals import goal_rows, stage_rows
from benchmarks.kernels.layers import PASSES
from benchmarks.markdown import busy, table

Result = dict[str, Any]


def conditions(result: Result) -> str:
    """The GPU, the versions, the day; and whether the host was busy."""
    gpu = result["gpu"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    cudnn = f"{gpu['cudnn'] // 10000}.{gpu['cudnn'] // 100 % 100}.{gpu['cudnn'] % 100}"
    return f"{gpu['name']}, CUDA {gpu['cuda']}, cuDNN {cudnn}; {versions}; {result['date']}{busy(result)}"


def us(row: Result, candidate: str = OURS) -> float:
    return float(1000 * row["candidates"][candidate]["ms"]["median"])


def host_bound(row: Result) -> bool:
    """Whether the row says nothing about the kernel: below a millisecond, events measure the host's time."""
    return row["candidates"][OURS]["timer"] == "events" and us(row) < 1000


def name(row: Result) -> str:
    return f"{row['channels']}, {row['size']}, {row['kernel']}"


def stages(result: Result, batch: int) -> list[tuple[Result, ...]]:
    """(forward, grad_input, grad_weight) of each of RepLKNet-31B's stages."""
    passes = [stage_rows(result["rows"], which, batch) for which in PASSES]
    if None in passes:
        raise ValueError(f"{result['benchmark']} has not all stages at batch {batch}")
    return list(zip(*(rows for rows in passes if rows), strict=True))


def stage_table(result: Result) -> list[str]:
    header = ["stage: C, H, K", "forward, us", "of the limit", "TFLOP/s on valid taps", "x PyTorch native"]
    header += ["x best cuDNN", "x best peer", "grad_input, us (x native)", "grad_weight, us (x native)"]
    rows = []
    for stage, (forward, *gradients) in enumerate(stages(result, 64), start=1):
        cells = [f"{stage}: {name(forward)}", f"{us(forward):.1f}", f"{forward['share_of_limit']:.0%}"]
        cells += [f"{forward['tflops_on_valid_taps']:.0f}", f"{forward['speedup_over_native']:.1f}"]
        cells += [f"{forward['speedup_over_best_cudnn']:.1f}"]
        cells += [f"{forward['speedup_over_best_peer']:.2f} ({forward['best_peer']})"]
        rows.append(cells + [f"{us(row):.1f} ({row['speedup_over_native']:.0f})" for row in gradients])
    ceilings = result["ceilings"]
    return [
        f"**RepLKNet-31B's K x K layers at 224 px, bfloat16, batch 64** ({conditions(result)})",
        "",
        *table(header, rows),
        "",
        f"In the same run a copy moved {ceilings['bandwidth'] / 1e12:.2f} TB/s, and a square matrix product",
        f"made {ceilings['peak']['bfloat16'] / 1e12:.0f} TFLOP/s in bfloat16.",
    ]


def batch_one_table(result: Result) -> list[str]:
    rows = []
    for stage, passes in enumerate(stages(result, 1), start=1):
        cells = [f"{stage}: {name(passes[0])}"]
        for row in passes:
            ratios = f"{row['speedup_over_native']:.1f}, {row['speedup_over_best_cudnn']:.1f}"
            cells.append("not measured" if host_bound(row) else f"{us(row):.1f} ({ratios})")
        rows.append(cells)
    title = f"**The same at batch 1**, us (x PyTorch native, x best cuDNN) ({conditions(result)})"
    return [title, "", *table(["stage: C, H, K", *PASSES], rows)]


def variant_table(result: Result) -> list[str]:
    """The table of the variants, with each candidate's microseconds."""
    rows = []
    for row in result["variants"]:
        ways = [(way, found) for way, found in row["ways"].items() if "ms" in found and "channels_last" not in way]
        each = ", ".join(f"{way} {1000 * found['ms']['median']:.1f}" for way, found in ways)
        shape = f"{row['channels']}, {row['size']}, {row['filter'][0]} x {row['filter'][1]}"
        cells = [row["variant"], str(row["batch"]), shape, row["dtype"]]
        rows.append([*cells, each.replace(NATIVE, "PyTorch native")])
    title = f"**Beside these layers**, us ({conditions(result)})"
    return [title, "", *table(["what", "batch", "C, H, filter", "dtype", "each way"], rows)]


def native_table(result: Result) -> list[str]:
    """The native library's kernels beside Python's."""
    rows = [
        [
            str(row["batch"]),
            name(row),
            *(f"{1000 * row['ms'][way]['median']:.1f}" for way in ("native", "python")),
            f"{row['native_over_python']:.2f}",
        ]
        for row in result["rows"]
    ]
    title = f"**The native library's kernels**, bias and ReLU, bfloat16, us ({conditions(result)})"
    return [title, "", *table(["batch", "C, H, K", "native", "Python's", "native / Python's"], rows)]


def layout_table(result: Result) -> list[str]:
    """The served file in both memory formats."""
    ways = list(result["rows"][0]["ms"])
    rows = [[str(row["batch"]), *(f"{row['ms'][way]['median']:.2f}" for way in ways)] for row in result["rows"]]
    title = f"**The file that a server loads**, RepLKNet-31B, bfloat16, ms by memory format ({conditions(result)})"
    return [title, "", *table(["batch", *ways], rows)]


def losses(result: Result) -> list[Result]:
    """The losses' rows, with their share of the run's own ceiling: older files have a CUDA graph's copy, 7 % more."""
    ceiling = result["ceilings"]["bandwidth"]
    return [
        row | {"of_copy": 1e9 * row["least_mb"] / row["ms"]["widefield"]["median"] / ceiling}
        for row in result["losses"]
    ]


def loss_table(result: Result) -> list[str]:
    peers = {"x eager": "speedup_over_eager", "x torch.compile": "speedup_over_compiled"}
    peers = {title: key for title, key in peers.items() if all(key in row for row in result["losses"])}
    header = ["target_norm", "prediction", "us", *peers, "of the copy's bandwidth, on the least bytes"]
    rows = []
    for row in losses(result):
        cells = [row["norm"], {"nhwc": "channels_last"}.get(row["layout"], row["layout"])]
        cells += [f"{1000 * row['ms']['widefield']['median']:.1f}", *(f"{row[key]:.1f}" for key in peers.values())]
        rows.append([*cells, f"{row['of_copy']:.0%}"])
    title = f"**The masked-patch loss, forward and backward**, batch 128, 192 px, bfloat16 ({conditions(result)})"
    return [title, "", *table(header, rows)]


def goal_table(result: Result, earlier: Result) -> list[str]:
    """The goals as `result` measured them; those that it did not measure, as `earlier` did."""
    before = {row["goal"]: row for row in goal_rows(earlier["rows"], losses(earlier))}
    rows = []
    for row in goal_rows(result["rows"], losses(result)):
        found, note = row, ""
        if row["measured"] is None:
            found, note = before[row["goal"]], ", the run before"
        measured = "-" if found["measured"] is None else f"{found['measured']:g} {found['unit']}".strip()
        wanted, stretch = f"{row['wanted']} {row['unit']}".strip(), str(row["stretch"] or "-")
        rows.append([row["goal"], wanted, stretch, measured + note, found["verdict"]])
    title = "**The goals** (bfloat16, batch 64 where nothing else is said)"
    return [title, "", *table(["goal", "wanted", "stretch", "measured", "verdict"], rows)]


def end_to_end_table(result: Result) -> list[str]:
    ways = [OURS, "eager", "eager channels_last"]
    if f"{OURS} channels_last" in result["training step"]["ms"]:
        ways.insert(2, f"{OURS} channels_last")
    names = [f"{way.replace(OURS, 'Widefield')}, ms" for way in ways]
    header = ["what", "batch", *names, "x eager", "x eager channels_last"]
    rows = []
    for what in ("training step", "inference"):
        row = result[what]
        ratios = (row["speedup_over_eager"], row["speedup_over_eager_channels_last"])
        cells = [what, str(row["batch"]), *(f"{row['ms'][way]['median']:.1f}" for way in ways)]
        rows.append(cells + [f"{ratio:.2f}" for ratio in ratios])
    title = (
        f"**{result['arch']} as a whole**, {result['image_size']} px, bfloat16, contiguous where no layout is named "
    )
    return [f"{title}({conditions(result)})", "", *table(header, rows)]
