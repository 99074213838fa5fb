"""A run's result: a dictionary for JSON, tables for people, and whether it met its objectives."""

import math
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from loadtest.recorder import Cell, percentile
from loadtest.server_statistics import difference, of_others
from loadtest.slo import judge

if TYPE_CHECKING:
    from loadtest.hooks import LoadTest

PARTS = (0.5, 0.9, 0.95, 0.99, 0.999)
LINE = ("protocol", "objective", "limit", "value", "met")
TOO_LATE = 10.0  # ms: a sender that is later than this at its p99 was short of CPU time


def summarise(test: "LoadTest") -> dict[str, Any]:
    options, kinds = test.options, test.kinds
    names = sorted(kind.request_type for kind in kinds)
    elapsed = test.ended or 0.0
    phases: list[dict[str, Any]] = []
    for index, phase in enumerate(test.phases):
        if phase.start >= elapsed and index:
            break  # interrupted
        seconds = min(phase.seconds, elapsed - phase.start) or math.nan
        cells = {name: test.recorder.cells.get(("phase", index, name), Cell()) for name in names}
        server = difference(*test.server[index : index + 2]) if index + 1 < len(test.server) else []
        protocols = {name: describe(cell, seconds) for name, cell in cells.items()}
        lines = [
            (name, *line)
            for name, cell in cells.items()
            if test.slo and phase.measured
            for line in judge(test.slo, cell, seconds)
        ]
        if options.rate and phase.measured:
            least = least_offered(phase.level / len(names), seconds)
            for name, row in protocols.items():
                row["least_offered_per_s"] = least
                if test.slo and least:
                    sent = row["sent_per_s"]
                    lines.append((name, "sent/s (least that chance explains)", round(least, 2), sent, sent >= least))
        phases.append(
            {
                "name": phase.name,
                "level": phase.level,
                "seconds": seconds,
                "measured": phase.measured,
                "protocols": protocols,
                "server": server,
                "slo": [dict(zip(LINE, line, strict=True)) for line in lines],
            }
        )
    length = test.recorder.window
    passed = sum(phase["seconds"] for phase in phases)
    # All windows, also those in which nothing was answered.
    windows = range(math.ceil(round(passed / length, 6)) if passed > 0 else 0)
    return {
        "open_loop": options.rate is not None,
        "shape": options.shape or ("steady" if options.rate else "locust"),
        "host": test.address,
        "model": options.model,
        "images": {
            "count": len(kinds[0].images),
            "bytes": sum(map(len, kinds[0].images)),
            "from": options.images or "photographs, resized",
        },
        "workers": getattr(options, "expect_workers", 1) if getattr(options, "master", False) else 1,
        "null_rate": options.null_rate,
        "complete": math.isinf(test.phases[-1].end) or elapsed >= test.phases[-1].end - 0.1,
        "slo": test.slo,
        "phases": phases,
        "window_s": length,
        "windows": [
            {
                "from_s": number * length,
                "protocol": name,
                **brief(test.recorder.cells.get(("window", number, name), Cell())),
            }
            for number in windows
            for name in names
        ],
    }


def least_offered(rate: float, seconds: float) -> float:
    """The least requests a second that chance explains: five standard deviations below a Poisson process of `rate`.

    Objectives that are met with less load than was asked for say nothing: a worker was lost, or this machine is slow.
    """
    return max(0.0, rate - 5 * math.sqrt(rate / seconds))


def rate_to_offer(least: float, seconds: float) -> float:
    """The rate whose `least_offered` is `least` (its inverse)."""
    half = 2.5 / math.sqrt(seconds)
    return (half + math.sqrt(half**2 + least)) ** 2 if least else 0.0


def describe(cell: Cell, seconds: float) -> dict[str, Any]:
    answered, failed = cell.latency.total(), cell.errors.total()
    return {
        "requests": answered + failed,
        "answered": answered,
        "failed": failed,
        "errors": dict(cell.errors.most_common()),
        "offered_per_s": (answered + failed) / seconds,
        "sent_per_s": cell.sent / seconds,
        "answered_per_s": cell.finished / seconds,
        "mean_ms": cell.total_ms / answered if answered else None,
        **{f"p{100 * part:g}_ms": cell.percentile(part) for part in PARTS},
        "max_ms": cell.max_ms if answered else None,
        "sent_late_p99_ms": percentile(cell.late, 0.99),
    }


def brief(cell: Cell) -> dict[str, Any]:
    return {
        "answered": cell.latency.total(),
        "finished": cell.finished,
        "failed": cell.errors.total(),
        "p50_ms": cell.percentile(0.5),
        "p99_ms": cell.percentile(0.99),
    }


def measured(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [phase for phase in result["phases"] if phase["measured"]]


def met(result: dict[str, Any]) -> bool:
    """Whether every objective was met in every measured phase; False without objectives, or if it was cut short."""
    lines = [line for phase in measured(result) for line in phase["slo"]]
    return result["complete"] and bool(lines) and all(line["met"] for line in lines)


def silent(result: dict[str, Any]) -> list[str]:
    """Protocols over which no request was answered in any measured phase."""
    names = result["phases"][0]["protocols"]
    return [name for name in names if not any(phase["protocols"][name]["answered"] for phase in measured(result))]


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def shown_value(line: dict[str, Any]) -> str:
    """The measured value of an objective as text; shares to four digits."""
    return number(line["value"], 4 if line["limit"] <= 1 and not line["objective"].startswith("sent/s") else 1)


def print_result(result: dict[str, Any], stderr: bool = False) -> None:
    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = 120
    padding = (0, int(console.width >= 100))  # without it 80 columns are enough
    unit = "requests/s" if result["open_loop"] else "users"
    heads = ("phase", "protocol", unit, "requests", "errors", "answers/s", "p50 ms", "p99 ms", "max ms")
    table = Table(*heads, padding=padding)
    for column in table.columns[2:]:
        column.justify = "right"
    for phase in result["phases"]:
        for name, row in phase["protocols"].items():
            numbers = (row["answered_per_s"], row["p50_ms"], row["p99_ms"], row["max_ms"])
            load = f"{phase['level'] / len(phase['protocols']):g}"  # each protocol has its part
            counts = (load, str(row["requests"]), str(row["failed"]))
            table.add_row(phase["name"], name, *counts, *map(number, numbers))
    console.print(table)
    lines = [(phase["name"], line) for phase in measured(result) for line in phase["slo"]]
    if result["slo"]:
        table = Table("phase", "protocol", "objective", "limit", "measured", "", padding=padding)
        for phase_name, line in lines:
            verdict = "met" if line["met"] else "[bold red]MISSED[/bold red]"
            cells = (line["protocol"], line["objective"], f"{line['limit']:g}", shown_value(line))
            table.add_row(phase_name, *cells, verdict)
        console.print(table)
    for text in warnings(result):
        print(text, file=sys.stderr)


def requests_needed(objective: str) -> int:
    """How many answers a percentile takes (100 for "p99"): with fewer it is the slowest of them."""
    return round(100 / (100 - float(objective[1:])))


def latency_objectives(result: dict[str, Any]) -> dict[str, float]:
    """The limits in milliseconds by percentile or "max"."""
    return (result["slo"] or {}).get("latency_ms", {})


def too_few(result: dict[str, Any]) -> list[str]:
    """A warning for each percentile objective that was measured on too few answers."""
    texts = []
    for phase in measured(result):
        few = min(row["answered"] for row in phase["protocols"].values())
        for objective in latency_objectives(result):
            if objective != "max" and few < (needed := requests_needed(objective)):
                texts.append(f"phase {phase['name']}: {objective} of {few} answers; it takes {needed}: measure longer")
    return texts


def lateness(phase: dict[str, Any]) -> float:
    """The p99 in milliseconds of how long after its due time a request was sent, over the worse protocol."""
    return max((row["sent_late_p99_ms"] or 0.0 for row in phase["protocols"].values()), default=0.0)


def on_time(result: dict[str, Any]) -> bool:
    """Whether the sender kept up; if it did not, the result says little about the server."""
    return all(lateness(phase) <= TOO_LATE for phase in measured(result))


def warnings(result: dict[str, Any]) -> list[str]:
    """Errors by kind, and what makes the figures doubtful."""
    texts = []
    for name in result["phases"][0]["protocols"]:
        errors: dict[str, int] = {}
        for phase in result["phases"]:
            for error, count in phase["protocols"][name]["errors"].items():
                errors[error] = errors.get(error, 0) + count
        texts += [f"{count} x {name}: {error}" for error, count in errors.items()]
    texts += [f"{name}: no request was answered" for name in silent(result)]
    if not result["complete"]:
        texts.append("the test was cut short")
    for phase in measured(result):
        rows = phase["protocols"].values()
        if (late := lateness(phase)) > TOO_LATE:
            texts.append(
                f"phase {phase['name']}: 1 % of the requests went more than {late:.0f} ms after they were due: this "
                "machine is the limit; use --processes, or send from another one"
            )
        rate = sum(row["answered_per_s"] for row in rows)
        for name, row in phase["protocols"].items():
            if row["sent_per_s"] < row.get("least_offered_per_s", 0.0):
                texts.append(
                    f"phase {phase['name']}: {name} was sent {row['sent_per_s']:.1f} requests/s, fewer than asked: "
                    "a worker is lost, or this machine is the limit"
                )
        if result["null_rate"] and rate > result["null_rate"] / 2:
            texts.append(
                f"phase {phase['name']}: {rate:.0f} answers/s are more than half of what this load generator sends "
                f"to a null model ({result['null_rate']:.0f}/s): it may be the limit"
            )
    texts += filter(None, (of_others(phase, result["model"]) for phase in measured(result)))
    texts += too_few(result)
    if not result["null_rate"]:
        texts.append("not measured: what this load generator can send (python -m loadtest null)")
    return texts
