"""Show the servers, their models, and where the time goes.

Times are milliseconds from the server's own statistics: means over the successful requests since its start, its warm-up
included, which is most of a new server's requests; `bench` shows the times of its own run only. The compute time of an
ensemble is the sum over its steps, queues are shown only at the steps, and the server counts an ensemble's failures
twice.

Each server is asked once, within --timeout; --model and --retries do nothing here. The exit status is 1 too if one of
them is not ready.
"""

import argparse
import csv
import json
import sys
from typing import Any

from client._classifier import Classifier
from client._errors import ClassifierError
from client._status import STEPS, ModelStatus, ServerStatus, Times
from client.commands._options import add_format_options
from client.commands._results import print_table
from client.options import add_server_options, open_classifier

COUNTS = ("images", "batches", "failed")
COLUMNS = ("model", "version", *COUNTS, "total_ms", *(f"{step}_ms" for step in STEPS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_format_options(parser)
    add_server_options(parser)


def run(options: argparse.Namespace) -> int:
    """Return the exit status: 1 if a server cannot be reached or is not ready."""
    with open_classifier(options, Classifier) as classifier:
        urls, found = classifier.urls, classifier.status()
    if options.format == "json":
        for url, status in zip(urls, found, strict=True):
            print(json.dumps(_as_json(url, status)))
    elif options.format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["server", *COLUMNS])
        for status in found:
            if isinstance(status, ServerStatus):
                writer.writerows([status.url, *_row(model)] for model in status.models)
    else:
        _print_table(found)
    for url, status in zip(urls, found, strict=True):
        if isinstance(status, ClassifierError):
            print(f"{url}: {status.message}", file=sys.stderr)
    return 0 if all(isinstance(status, ServerStatus) and status.ready for status in found) else 1


def _as_json(url: str, status: "ServerStatus | ClassifierError") -> dict[str, Any]:
    if isinstance(status, ClassifierError):
        return {"server": url, "ready": False, "error": {"type": type(status).__name__, "message": status.message}}
    models = [
        {**_values(model), "requests": model.success.count, "failed_ms": _milliseconds(model.failure)}
        for model in status.models
    ]
    return {"server": url, "name": status.name, "version": status.version, "ready": status.ready, "models": models}


def _values(model: ModelStatus) -> dict[str, "str | int | float | None"]:
    """The value of each of `COLUMNS`; None for the time of what has not happened."""
    times = (_milliseconds(time) for time in (model.success, *(getattr(model, step) for step in STEPS)))
    counts = (model.inferences, model.executions, model.failure.count)
    return dict(zip(COLUMNS, (model.name, model.version, *counts, *times), strict=True))


def _milliseconds(time: Times) -> float | None:
    return time.mean_ms if time.count else None


def _row(model: ModelStatus) -> list[str]:
    shown = (f"{value:.2f}" if isinstance(value, float) else value for value in _values(model).values())
    return ["" if value is None else str(value) for value in shown]


def _print_table(found: "list[ServerStatus | ClassifierError]") -> None:
    from rich.table import Table
    from rich.text import Text

    for status in found:
        if isinstance(status, ClassifierError):
            continue
        ready = "ready" if status.ready else "NOT READY"
        title = Text(f"{status.url}  {status.name} {status.version}  {ready}")
        columns = ("model", "ver", *COUNTS, "total", "queue", "input", "compute", "output")
        table = Table(*columns, title=title, box=None, pad_edge=False, padding=(0, 1, 0, 0))  # fits into 80 columns
        table.columns[0].overflow = "fold"  # a long name takes two lines
        for column in table.columns[1:]:
            column.no_wrap, column.justify = True, "right"
        for model in status.models:
            table.add_row(*map(Text, _row(model)))
        print_table(table, least=80)  # a narrower terminal wraps the lines: Rich would cut the numbers off
    if any(isinstance(status, ServerStatus) for status in found):
        print("total to output: means in ms; an ensemble (classifier) counts failures twice")
