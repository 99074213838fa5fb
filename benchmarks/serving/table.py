"""The runs as one row for each server and load, with medians over the repeats, and the comparison with the peers."""

import statistics
from typing import Any

from benchmarks.markdown import table

OURS = "widefield"
FIGURES = ("images_per_s", "p50_ms", "p99_ms")


def rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each model and server: medians of each load's figures, and the sum of the errors."""
    found = []
    for model, server in dict.fromkeys((run["model"], run["server"]) for run in runs):
        same = [run for run in runs if (run["model"], run["server"]) == (model, server)]
        loads = {name: combined([run["loads"][name] for run in same]) for name in same[0]["loads"]}
        row = {"model": model, "server": server, "repeats": len(same), "loads": loads}
        for name in ("cold_start_s", "memory_mib"):
            row[name] = round(statistics.median(run[name] for run in same), 2)
        found.append(row)
    return found


def combined(loads: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians over the repeats; None if a repeat had no answer at all. Also the slowest and the fastest repeat,
    and the largest delay of an open loop's sender."""
    result: dict[str, Any] = {"errors": sum(load["errors"] for load in loads)}
    for name in FIGURES:
        values = [load[name] for load in loads]
        result[name] = None if None in values else round(statistics.median(values), 2)
    rates = [load["images_per_s"] for load in loads]
    result["images_per_s_range"] = [round(min(rates), 2), round(max(rates), 2)]
    if "sender_late_ms" in loads[0]:
        result["sender_late_ms"] = max(load["sender_late_ms"] for load in loads)
    return result


def verdicts(found: list[dict[str, Any]], way: str = "") -> list[dict[str, Any]]:
    """Compare Widefield with the best peer for each model.

    Returns the most images a second of both at a p99 no worse than that peer's, and the milliseconds that Widefield is
    behind the fastest peer with one caller (negative: ahead). `way`: only peers whose name ends with it count.
    """
    result = []
    for model in dict.fromkeys(row["model"] for row in found):
        servers = {row["server"]: row["loads"] for row in found if row["model"] == model}
        mine = servers.pop(OURS, None)
        servers = {name: loads for name, loads in servers.items() if name.endswith(way)}
        if mine is None or not servers:
            continue
        best, load = max(
            ((name, load) for name, loads in servers.items() for load in loads.values() if load["p99_ms"] is not None),
            key=lambda pair: pair[1]["images_per_s"],
        )
        within = [one["images_per_s"] for one in mine.values() if (one["p99_ms"] or float("inf")) <= load["p99_ms"]]
        fastest = min(servers, key=lambda name: servers[name]["closed 1"]["p50_ms"] or float("inf"))
        ratio = round(max(within, default=0.0) / load["images_per_s"], 3)
        behind = round(mine["closed 1"]["p50_ms"] - servers[fastest]["closed 1"]["p50_ms"], 2)
        result.append(
            {
                "model": model,
                "best_peer": best,
                "its_images_per_s": load["images_per_s"],
                "its_p99_ms": load["p99_ms"],
                "throughput_ratio_at_equal_p99": ratio,
                "fastest_peer_at_1": fastest,
                "ms_behind_it_at_1": behind,
                "peer_wins": [name for name, lost in (("throughput", ratio < 1), ("latency", behind > 0)) if lost],
            }
        )
    return result


def lines(result: dict[str, Any], conditions: str, title: str = "Against other servers") -> list[str]:
    """The report's table."""
    repeats = min(row["repeats"] for row in result["rows"])
    measured = f"medians of {repeats} repeats of {result['seconds']:g} s a load"
    text = [f"**{title}**, JPEG in, labels out, images/s (p50, p99 in ms), {measured} ({conditions})", ""]
    names = list(result["rows"][0]["loads"])
    rows = []
    for row in result["rows"]:
        cells = [
            f"{load['images_per_s']:.1f} ({load['p50_ms']:.0f}, {load['p99_ms']:.0f})" if load["p99_ms"] else "none"
            for load in row["loads"].values()
        ]
        errors = sum(load["errors"] for load in row["loads"].values())
        cells = [row["model"], row["server"], *cells, str(errors), f"{row['memory_mib']:.0f}"]
        rows.append([*cells, f"{row['cold_start_s']:.1f}"])
    text += [*table(["model", "server", *names, "errors", "MiB", "cold start, s"], rows), ""]
    late = max(
        load["sender_late_ms"] for row in result["rows"] for load in row["loads"].values() if "sender_late_ms" in load
    )
    text += [f"The open loops' sender, on the same cores, was {late:.0f} ms late at worst.", ""]
    if result["warning"]:
        text += [f"**{result['warning']}.**", ""]
    for verdict in result["verdicts"]:
        wins = f"a peer wins on {' and '.join(verdict['peer_wins'])}" if verdict["peer_wins"] else "no peer wins"
        behind = verdict["ms_behind_it_at_1"]
        text.append(
            f"- {verdict['model']}: {verdict['throughput_ratio_at_equal_p99']:.2f} times the throughput of "
            f"{verdict['best_peer']} at its p99 of {verdict['its_p99_ms']:.0f} ms; one caller waits "
            f"{abs(behind):.1f} ms {'more' if behind > 0 else 'less'} than with {verdict['fastest_peer_at_1']}: {wins}."
        )
    return text
