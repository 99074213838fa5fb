"""The report as one self-contained HTML file: the verdict, charts, tables."""

import html
from collections.abc import Iterable, Sequence
from typing import Any

from loadtest.charts import latency_against_throughput, over_time, where_the_time_goes
from loadtest.results import measured, met, number, shown_value, too_few, warnings

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #24292f; background: #fff; max-width: 980px; margin: 2em auto;
       padding: 0 1em }
h1 { font-size: 1.6em; margin: 0 } h2 { font-size: 1.15em; margin: 2em 0 .4em; border-bottom: 1px solid #d0d7de }
p { margin: .4em 0 } .note { color: #57606a; font-size: 13px }
.wide { overflow-x: auto } svg { width: 100%; min-width: 640px; height: auto }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: 3px 8px; border-bottom: 1px solid #eaeef2 } td { white-space: nowrap }
th { color: #57606a; font-weight: 600 }
.n { text-align: right } .missed { color: #cf222e; font-weight: 600 } .met { color: #1a7f37 }
.verdict { display: inline-block; color: #fff; padding: 2px 12px; border-radius: 1em; margin: .6em 0; font-weight: 600 }
.verdict.met { background: #1a7f37 } .verdict.missed { background: #cf222e }
.warning { background: #fff8c5; border-left: 4px solid #d4a72c; padding: .3em .8em; font-size: 13px }
"""
Cells = Sequence[Any]


class Html(str):
    """A cell's content that is HTML already."""


_COMPUTE = ("compute_input", "compute", "compute_output")


def render(results: Sequence[dict[str, Any]], capacity: dict[str, Any] | None = None) -> str:
    """Render `results` of one run, or of all the runs of a search for `capacity` (with keys rate, limited, tried)."""
    first = results[0]
    body = [f"<h1>Load on {escape(first['model'])} at {escape(first['host'])}</h1>", *_verdict(results, capacity)]
    body += [f'<p class="note">{text}</p>' for text in _facts(first)]
    texts = [escape(text) for text in dict.fromkeys(text for result in results for text in warnings(result))]
    body += [f'<p class="warning">{text}</p>' for text in texts[:4]]
    if more := texts[4:]:
        lines = "<br>".join(more)
        body.append(f'<details class="warning"><summary>and {len(more)} more</summary>{lines}</details>')
    if capacity:
        tried = [(f"{rate:.1f}", f"{runs.count(True)} of {len(runs)}") for rate, runs in capacity["tried"]]
        objectives = "; ".join(_limits(phase for result in results for phase in measured(result)))
        body += ["<h2>Rates tried</h2>", f'<p class="note">Objectives: {escape(objectives)}.</p>']
        body.append(_table(("requests/s", "runs that met the objectives"), tried, words=2))
    if first["slo"] and not capacity:
        body += ["<h2>Objectives</h2>", _objectives(first)]
    counted = [result for result in results if not result.get("made_again")]
    if any(row["answered"] for result in counted for phase in measured(result) for row in phase["protocols"].values()):
        rate = capacity["rate"] if capacity else None
        body += ["<h2>Latency against throughput</h2>", _wide(latency_against_throughput(counted, rate))]
    if not capacity and any(window["answered"] for window in first["windows"]):
        body += ["<h2>Over time</h2>", _wide(over_time(first))]
    phases = [phase for result in results for phase in measured(result)]
    if capacity:
        phases.sort(key=lambda phase: phase["level"])
    shown = {phase["level"] if capacity else phase["name"]: phase for phase in phases}
    shares = [(phase["name"], row) for phase in shown.values() if (row := time_shares(phase, first["model"]))]
    if shares:
        body += ["<h2>Where the time goes</h2>", _wide(where_the_time_goes(shares))]
        body.append('<p class="note">The server\'s own statistics beside the mean that the client saw.</p>')
    body += ["<h2>The client's measurements</h2>", _client_table(phases)]
    body += ["<h2>The server's measurements</h2>", _server_table(phases)]
    title = f"Load on {escape(first['model'])}"
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f"<title>{title}</title><style>{STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>' + "\n".join(body) + "</body></html>\n"


def time_shares(phase: dict[str, Any], model: str) -> dict[str, float]:
    """Mean milliseconds of a request by part; empty without the server's statistics."""
    rows = [row for row in phase["protocols"].values() if row["answered"]]
    whole = next((row for row in phase["server"] if row["model"] == model), None)
    if not rows or whole is None:
        return {}
    seen = sum(row["mean_ms"] * row["answered"] for row in rows) / sum(row["answered"] for row in rows)
    shares = {}
    # An ensemble's own times are the sums of its steps'; another client's models are not ours.
    steps = [row for row in phase["server"] if row is not whole and row["requests"] >= whole["requests"] / 2]
    for step in steps or [whole]:
        times = {"queue": step["queue_ms"], "compute": sum(step[f"{part}_ms"] for part in _COMPUTE)}
        for part, milliseconds in times.items():
            if milliseconds >= 0.005:
                shares[f"{step['model']}: {part}"] = milliseconds
    shares["rest of the server"] = max(0.0, whole["total_ms"] - sum(shares.values()))
    shares["outside the server"] = max(0.0, seen - whole["total_ms"])
    return shares


def escape(value: Any) -> str:
    return html.escape(str(value))


def _verdict(results: Sequence[dict[str, Any]], capacity: dict[str, Any] | None) -> list[str]:
    if capacity:
        rate = f"{capacity['rate']:.1f} requests a second"
        words = f"at least {rate} (the load generator's limit)" if capacity["limited"] else rate
        good = capacity["rate"] > 0
        words = f"Capacity within the objectives: {words}" if good else "No rate that was tried meets the objectives"
    elif results[0]["slo"]:
        good = met(results[0])
        sure = not too_few(results[0])
        met_words = "All objectives met" if sure else "Objectives met, but of too few answers to be sure"
        words = met_words if good else "Objectives missed"
    else:
        return []
    return [f'<p><span class="verdict {"met" if good else "missed"}">{words}</span></p>']


def _facts(result: dict[str, Any]) -> list[str]:
    loop = (
        "Open loop, Poisson: latencies count from the intended send time."
        if result["open_loop"]
        else "Closed loop: each user sends when it has its answer, so a slow server is asked less often."
    )
    images = result["images"]
    mean = images["bytes"] / images["count"] / 1000
    null = f"{result['null_rate']:.0f} requests/s to a null model" if result["null_rate"] else "not measured"
    return [
        f"{loop} Shape: {escape(result['shape'])}. {escape(result.get('finished', ''))}.",
        f"{images['count']} images ({escape(images['from'])}), mean {mean:.0f} kB. Processes: {result['workers']}. "
        f"What the load generator can send: {null}.",
    ]


def _table(names: Sequence[str], rows: Iterable[Cells], words: int = 1) -> str:
    """The first `words` columns are text, the others numbers."""

    def cell(kind: str, index: int, value: Any) -> str:
        text = value if isinstance(value, Html) else escape(value)
        return f"<{kind}{' class=n' * (index >= words)}>{text}</{kind}>"

    lines = [[cell("th", index, name) for index, name in enumerate(names)]]
    lines += [[cell("td", index, value) for index, value in enumerate(row)] for row in rows]
    return _wide("<table>" + "\n".join(f"<tr>{''.join(line)}</tr>" for line in lines) + "</table>")


def _wide(content: str) -> str:
    """What is wider than a phone scrolls by itself, not with the page."""
    return f'<div class="wide">{content}</div>'


def _objectives(result: dict[str, Any]) -> str:
    """A row for each phase and protocol, a column for each objective."""
    limits = _limits(measured(result))
    rows = []
    for phase in measured(result):
        for protocol in phase["protocols"]:
            lines = {line["objective"]: line for line in phase["slo"] if line["protocol"] == protocol}
            cells = (_judged(lines[name], shown == name) if name in lines else "-" for shown, name in limits.items())
            rows.append((phase["name"], protocol, *cells))
    return _table(["phase", "protocol", *limits], rows, words=2)


def _limits(phases: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Objective with its limit -> objective. The least load to be sent, which has a limit per phase, has none here."""
    limits: dict[str, set[float]] = {}
    for line in (line for phase in phases for line in phase["slo"]):
        limits.setdefault(line["objective"], set()).add(line["limit"])
    return {name if len(found) > 1 else f"{name}: {min(found):g}": name for name, found in limits.items()}


def _judged(line: dict[str, Any], shown: bool) -> str:
    """A cell with the measured value, and with its limit if `shown`."""
    value = shown_value(line) + (f" ({line['limit']:g})" if shown else "")
    return Html(f'<span class="met">{value}</span>' if line["met"] else f'<span class="missed">✗ {value}</span>')


def _client_table(phases: Sequence[dict[str, Any]]) -> str:
    times = ("mean", "p50", "p95", "p99", "p99.9", "max")
    rows = []
    for phase in phases:
        for name, row in phase["protocols"].items():
            counts = (number(row["offered_per_s"]), number(row["answered_per_s"]), row["failed"])
            milliseconds = (*(row[f"{time}_ms"] for time in times), row["sent_late_p99_ms"])
            rows.append((phase["name"], name, *counts, *map(number, milliseconds)))
    names = ("phase", "protocol", "offered/s", "answers/s", "errors", *times, "late")
    note = '<p class="note">Times in milliseconds; late: p99 of how long after its due time a request was sent.</p>'
    return _table(names, rows, words=2) + note


def _server_table(phases: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            phase["name"],
            step["model"],
            step["version"],
            step["requests"],
            step["failed"],
            number(step["batch"]),
            *(number(step[f"{part}_ms"], 2) for part in ("queue", *_COMPUTE, "total")),
        )
        for phase in phases
        for step in phase["server"]
    ]
    if not rows:
        return '<p class="note">The server gave no statistics (HTTP /v2/models/stats).</p>'
    names = ("phase", "model", "version", "requests", "failed", "batch", "queue", "input", "compute", "output", "total")
    note = "Mean milliseconds of a request in each model. tritonserver counts an ensemble's failures twice."
    return _table(names, rows, words=2) + f'<p class="note">{note}</p>'
