"""Measure a server from here: how many images a second, and how long each takes.

Closed loop (default): each of --concurrency callers sends the next image when it has its answer. Open loop: --rate
images a second are sent at random times (Poisson) whether or not earlier ones are answered; latency counts from when an
image was due, so that a stall is charged to every image that it delays. Nothing is sent again unless --retries says so.
The server's own times are those of its steps during the run.
"""

import argparse
import asyncio
import csv
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from client._async_classifier import AsyncClassifier
from client._errors import ClassifierError, InvalidImageError, ServerUnavailableError
from client._sources import expand
from client._status import step_times
from client.commands._options import add_format_options
from client.commands._progress import clock
from client.commands._results import print_table
from client.options import (
    UsageError,
    add_number,
    add_server_options,
    add_top,
    not_negative,
    open_classifier,
    positive,
    whole,
)

Named: TypeAlias = tuple[str, bytes]  # an image's file, and what is in it
PERCENTILES = (50, 90, 99)
WORDS = {  # for people
    "load.concurrency": "requests in flight",
    "load.rate": "images due a second",
    "errors": "not answered: {}",
    "images_per_s": "images a second",
    "latency_ms": "latency {}, ms",
    "sent_late_ms": "sent late at most, ms",
    "server_ms": "server: {}, ms",
}


@dataclass
class Run:
    """The measurements of a run, in seconds; `late`: the longest delay in sending by this program itself."""

    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    first: dict[str, ClassifierError] = field(default_factory=dict)  # of each kind of error
    elapsed: float = 0.0
    late: float = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", metavar="PATH", help="images, folders or patterns, sent in turn")
    load = parser.add_mutually_exclusive_group()
    add_number(load, "--concurrency", whole(1), 8, "N", "closed loop of this many callers")
    load.add_argument("--rate", type=positive, metavar="PER_SECOND", help="open loop of this many images a second")
    add_number(parser, "--seconds", positive, 10.0, "SECONDS", "time that is measured")
    add_number(parser, "--warm-up", not_negative, 1.0, "SECONDS", "time before that is not counted")
    add_top(parser)
    add_format_options(parser)
    add_server_options(parser, retries=0)


def run(options: argparse.Namespace) -> int:
    """Return the exit status: 1 if an image was not answered."""
    images = _read(options.paths)
    try:
        report, first = asyncio.run(_measure(images, options))
    except ServerUnavailableError as error:
        print(error.message, file=sys.stderr)
        return 1
    if options.format == "json":
        print(json.dumps(report))
    elif options.format == "csv":
        flat = _flat(report)
        csv.writer(sys.stdout, lineterminator="\n").writerows([flat.keys(), flat.values()])
    else:
        _print_table(report)
    for kind, met in first.items():
        words = met if isinstance(met, InvalidImageError) else met.message
        print(f"{report['errors'][kind]} not answered: {words}", file=sys.stderr)
    return 1 if report["errors"] or not report["answered"] else 0


async def closed_loop(classifier: AsyncClassifier, images: Sequence[Named], top: int, callers: int, end: float) -> Run:
    """Run `callers` closed loops until `end` (monotonic seconds)."""
    result, numbers = Run(), iter(range(sys.maxsize))

    async def call() -> None:
        while (begun := time.monotonic()) < end:
            await _send(classifier, images[next(numbers) % len(images)], top, begun, result)

    started = time.monotonic()
    await asyncio.gather(*(call() for _ in range(callers)))
    result.elapsed = time.monotonic() - started
    return result


async def open_loop(classifier: AsyncClassifier, images: Sequence[Named], top: int, rate: float, end: float) -> Run:
    """Send `rate` images a second until `end`: Poisson arrivals, the same in every run."""
    result, generator, tasks = Run(), random.Random(0), set()
    started = due = time.monotonic()
    number = 0
    while (due := due + generator.expovariate(rate)) < end:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        result.late = max(result.late, time.monotonic() - due)
        task = asyncio.create_task(_send(classifier, images[number % len(images)], top, due, result))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
    await asyncio.gather(*tasks)
    result.elapsed = max(end, time.monotonic()) - started  # also the time after the last one in which none was due
    return result


async def _send(classifier: AsyncClassifier, named: Named, top: int, due: float, result: Run) -> None:
    name, image = named
    try:
        await classifier.classify(image, top)
    except ClassifierError as error:
        error.image = name
        result.errors[type(error).__name__] += 1
        result.first.setdefault(type(error).__name__, error)
        await asyncio.sleep(0.01)  # a refused connection must not become a busy loop
    else:
        result.latencies.append(time.monotonic() - due)


async def _measure(
    images: list[Named], options: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, ClassifierError]]:
    """Return the report and the first error of each kind. Raises `ServerUnavailableError` if none can be reached."""
    async with open_classifier(options, AsyncClassifier) as classifier:

        async def load(span: float) -> Run:
            end = time.monotonic() + span
            if options.rate is None:
                return await closed_loop(classifier, images, options.top, options.concurrency, end)
            return await open_loop(classifier, images, options.top, options.rate, end)

        async with clock(options.warm_up + options.seconds, "measuring"):
            warmed = await load(options.warm_up)
            for error in warmed.first.values():
                if isinstance(error, ServerUnavailableError) and not warmed.latencies:
                    raise error
            before = await classifier.status(options.timeout)
            result = await load(options.seconds)
        after = await classifier.status(options.timeout)
    report = {
        "load": {"concurrency": options.concurrency} if options.rate is None else {"rate": options.rate},
        "seconds": round(result.elapsed, 3),
        "answered": len(result.latencies),
        "errors": dict(result.errors),
        "images_per_s": round(len(result.latencies) / result.elapsed, 2),
        "latency_ms": _percentiles(result.latencies),
        "sent_late_ms": round(1e3 * result.late, 1),
        "server_ms": {
            model: {step: round(time.mean_ms, 3) for step, time in times.items()}
            for model, times in step_times(before, after).items()
        },
    }
    return report, result.first


def _percentiles(latencies: list[float]) -> dict[str, float | None]:
    """The percentiles in milliseconds of latencies in seconds, by nearest rank."""
    ordered = sorted(latencies)
    ranks = {part: math.ceil(len(ordered) * part / 100) for part in PERCENTILES}  # from 1
    named = {f"p{part}": ordered[rank - 1] if ordered else None for part, rank in ranks.items()}
    named["max"] = ordered[-1] if ordered else None
    return {name: None if value is None else round(1e3 * value, 2) for name, value in named.items()}


def _read(paths: list[str]) -> list[Named]:
    found = list(expand(paths))
    for name, problem in found:
        if problem is not None:
            raise UsageError(f"{name}: {problem}")
    try:
        return [(name, Path(name).read_bytes()) for name, _ in found]
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from error


def _flat(report: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in report.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _print_table(report: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", show_header=False)
    for name, value in _flat(report).items():
        group, _, rest = name.partition(".")
        words = WORDS.get(name) or WORDS.get(group, group).format(rest.replace(".compute_", " ").replace(".", " "))
        table.add_row(Text(words), "" if value is None else str(value))  # Text: a model's name is no markup
    print_table(table)
