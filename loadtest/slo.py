"""Service level objectives from a TOML file, checked against each measured phase.

[latency_ms]          # of answers; open loop: from the intended send time
p50 = 80
p99 = 300
[errors]
rate = 0.001          # share of requests that were not answered
[goodput]             # answers within the deadline
deadline_ms = 500
share = 0.99          # of the requests that were due; and/or
per_s = 40
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loadtest.recorder import Cell, count_within

KEYS = {
    "latency_ms": ("p50", "p90", "p95", "p99", "p99.9", "max"),
    "errors": ("rate",),
    "goodput": ("deadline_ms", "share", "per_s"),
}
SHARES = (("errors", "rate"), ("goodput", "share"))
Slo = dict[str, dict[str, float]]


def load_slo(path: str | Path) -> Slo:
    """Read objectives. Raises a `ValueError` that names the file, and a wrong key with its value and the remedy."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        slo = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"--slo {path} cannot be read ({error.strerror}): name a TOML file of objectives") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML ({error})") from None
    try:
        check_slo(slo)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return slo


def check_slo(slo: Mapping[str, Any]) -> None:
    for table, entries in slo.items():
        if table not in KEYS or not isinstance(entries, dict):
            raise ValueError(f"{table} is not a table of objectives: use {', '.join(f'[{name}]' for name in KEYS)}")
        for key, value in entries.items():
            if key not in KEYS[table]:
                raise ValueError(f"[{table}] {key} is not an objective: use {', '.join(KEYS[table])}")
            if isinstance(value, dict):
                dotted = f"{key}.{next(iter(value), '')}"
                raise ValueError(f'[{table}] {dotted} needs quotes in TOML: write "{dotted}"')
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 <= value <= sys.float_info.max:  # an infinite limit would always be met
                raise ValueError(f"[{table}] {key} is {value!r}: give a number, 0 or more and finite")
            if (table, key) in SHARES and value > 1:
                raise ValueError(f"[{table}] {key} is {value}: give a share, 0 to 1")
    goodput = slo.get("goodput", {})
    if goodput and ("deadline_ms" not in goodput or len(goodput) < 2):
        raise ValueError("[goodput] needs deadline_ms, and share or per_s or both")
    if not any(slo.values()):
        raise ValueError("no objective: write for example [latency_ms] p99 = 300")


def judge(slo: Slo, cell: Cell, seconds: float) -> Iterator[tuple[str, float, float | None, bool]]:
    """Yield (objective, limit, measured, met) for each objective. With no answer at all every latency is missed."""
    answered, failed = cell.latency.total(), cell.errors.total()
    for name, limit in slo.get("latency_ms", {}).items():
        value = cell.max_ms if name == "max" else cell.percentile(float(name[1:]) / 100)
        yield f"{name} ms", limit, value, bool(answered) and value is not None and value <= limit
    if "rate" in slo.get("errors", {}):
        rate = failed / (answered + failed) if answered + failed else 1.0
        yield "error rate", slo["errors"]["rate"], rate, rate <= slo["errors"]["rate"]
    goodput = slo.get("goodput", {})
    if goodput:
        good = count_within(cell.latency, goodput["deadline_ms"])
        within = f"within {goodput['deadline_ms']:g} ms"
        if "share" in goodput:
            share = good / (answered + failed) if answered + failed else 0.0
            yield f"goodput share {within}", goodput["share"], share, share >= goodput["share"]
        if "per_s" in goodput:
            yield f"goodput/s {within}", goodput["per_s"], good / seconds, good / seconds >= goodput["per_s"]
