"""The tables of docs/kernels.md from a GPU's results files."""

from typing import Any

from benchmarks.kernels.candidates import NATIVE, OURS
from benchmarks.kernels.goals import stage_rows
from benchmarks.kernels.layers import PASSES

Result = dict[str, Any]


def conditions(result: Result) -> str:
    """The GPU, the versions, the day; and whether the host was busy."""
    gpu = result["gpu"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    busy = f"; the host was busy: {result['warning'].split(':')[0]}" if result.get("warning") else ""
    cudnn = f"{gpu['cudnn'] // 10000}.{gpu['cudnn'] // 100 % 100}.{gpu['cudnn'] % 100}"
    return f"{gpu['name']}, CUDA {gpu['cuda']}, cuDNN {cudnn}; {versions}; {result['date']}{busy}"


def us(row: Result, candidate: str = OURS) -> float:
    return float(1000 * row["candidates"][candidate]["ms"]["median"])


def host_bound(row: Result) -> bool:
    """Below a millisecond a time by events is the host's: such a row says nothing about the kernel."""
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
    ceilings = result["ceilings"]
    lines = [f"**RepLKNet-31B's K x K layers at 224 px, bfloat16, batch 64** ({conditions(result)})", ""]
    lines += [
        "| stage: C, H, K | forward, us | of the limit | TFLOP/s on valid taps | x PyTorch native | x best cuDNN "
        "| x best peer | grad_input, us (x native) | grad_weight, us (x native) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for stage, (forward, *gradients) in enumerate(stages(result, 64), start=1):
        cells = [f"{stage}: {name(forward)}", f"{us(forward):.1f}", f"{forward['share_of_limit']:.0%}"]
        cells += [f"{forward['tflops_on_valid_taps']:.0f}", f"{forward['speedup_over_native']:.1f}"]
        cells += [f"{forward['speedup_over_best_cudnn']:.1f}"]
        cells += [f"{forward['speedup_over_best_peer']:.2f} ({forward['best_peer']})"]
        cells += [f"{us(row):.1f} ({row['speedup_over_native']:.0f})" for row in gradients]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"In the same run a copy moved {ceilings['bandwidth'] / 1e12:.2f} TB/s, and a square matrix product"]
    lines += [f"made {ceilings['peak']['bfloat16'] / 1e12:.0f} TFLOP/s in bfloat16."]
    return lines


def batch_one_table(result: Result) -> list[str]:
    lines = [f"**The same at batch 1**, us (x PyTorch native, x best cuDNN) ({conditions(result)})", ""]
    lines += ["| stage: C, H, K | forward | grad_input | grad_weight |", "|---|---|---|---|"]
    for stage, rows in enumerate(stages(result, 1), start=1):
        cells = [f"{stage}: {name(rows[0])}"]
        for row in rows:
            ratios = f"{row['speedup_over_native']:.1f}, {row['speedup_over_best_cudnn']:.1f}"
            cells.append("not measured" if host_bound(row) else f"{us(row):.1f} ({ratios})")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def variant_table(result: Result) -> list[str]:
    """What the sweep has not, each way in microseconds."""
    lines = [f"**Strips, fused GELU, tf32**, batch 64, us ({conditions(result)})", ""]
    lines += ["| what | C, H, filter | dtype | each way |", "|---|---|---|---|"]
    for row in result["variants"]:
        ways = [(way, found) for way, found in row["ways"].items() if "ms" in found and "channels_last" not in way]
        each = ", ".join(f"{way} {1000 * found['ms']['median']:.1f}" for way, found in ways)
        shape = f"{row['channels']}, {row['size']}, {row['filter'][0]} x {row['filter'][1]}"
        lines.append(f"| {row['variant']} | {shape} | {row['dtype']} | {each.replace(NATIVE, 'PyTorch native')} |")
    return lines


def loss_table(result: Result) -> list[str]:
    lines = [f"**The masked-patch loss, forward and backward**, batch 128, 192 px, bfloat16 ({conditions(result)})", ""]
    lines += ["| target_norm | prediction | us | x eager | of the copy's bandwidth, on the least bytes |"]
    lines += ["|---|---|---|---|---|"]
    for row in result["losses"]:
        cells = [row["norm"], {"nhwc": "channels_last"}.get(row["layout"], row["layout"])]
        cells += [f"{1000 * row['ms']['widefield']['median']:.1f}", f"{row['speedup_over_eager']:.1f}"]
        lines.append(f"| {' | '.join(cells)} | {row['of_copy']:.0%} |")
    return lines


def goal_table(result: Result, earlier: Result) -> list[str]:
    """The goals as `result` measured them; what it has not reached, as `earlier` did."""
    lines = ["**The goals** (bfloat16, batch 64 where nothing else is said)", ""]
    lines += ["| goal | wanted | stretch | measured | verdict |", "|---|---|---|---|---|"]
    before = {row["goal"]: row for row in earlier["goals"]}
    for row in result["goals"]:
        found, note = row, ""
        if row["measured"] is None:
            found, note = before[row["goal"]], ", the run before"
        measured = "-" if found["measured"] is None else f"{found['measured']:g} {found['unit']}".strip()
        wanted, stretch = f"{row['wanted']} {row['unit']}".strip(), row["stretch"] or "-"
        lines.append(f"| {row['goal']} | {wanted} | {stretch} | {measured}{note} | {found['verdict']} |")
    return lines


def end_to_end_table(result: Result) -> list[str]:
    lines = [f"**{result['arch']} as a whole**, {result['image_size']} px, bfloat16 ({conditions(result)})", ""]
    lines += ["| what | batch | Widefield, ms | eager, ms | eager channels_last, ms | x eager | x the latter |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for what in ("training step", "inference"):
        row = result[what]
        cells = [what, str(row["batch"])]
        cells += [f"{row['ms'][way]['median']:.1f}" for way in (OURS, "eager", "eager channels_last")]
        ratios = (row["speedup_over_eager"], row["speedup_over_eager_channels_last"])
        lines.append(f"| {' | '.join(cells)} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    return lines
