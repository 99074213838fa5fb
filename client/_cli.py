"""``python -m client classify PATH...``"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from client._classifier import Classifier, Outcome
from client._errors import ClassifierError, InvalidImageError
from client._paths import expand

DESCRIPTION = """\
Classify images on a running server.

A PATH is a file, a folder (searched through, by suffix: jpg jpeg png webp bmp gif)
or a quoted pattern ("photos/**/*.jpg").
A bad image is reported by name, the others are answered all the same.

--json writes one object a line, in order:
  {"image": "cat.jpg", "predictions": [{"label": "cat", "index": 3, "probability": 0.98}, ...]}
  {"image": "bad.jpg", "error": {"type": "InvalidImageError", "message": "no such file: check the path"}}

Exit status: 0 every image was answered, 1 at least one was not, 2 wrong usage, 130 interrupted.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser, options = _parse(arguments)
    try:
        classifier = Classifier(options.url, options.protocol, options.model, options.timeout)
        results = _classify(classifier, options.paths, options.top, options.concurrency, quiet=options.json)
    except ValueError as error:
        parser.error(str(error))
    try:
        with classifier:
            return _print_json(results) if options.json else _print_table(results)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m client", description="Ask a Widefield server.")
    commands = parser.add_subparsers(dest="command", required=True)
    classify = commands.add_parser(
        "classify",
        help="classify images",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    classify.add_argument("paths", nargs="+", metavar="PATH")
    classify.add_argument("--url", help="host:port (default: this machine, gRPC port 8001, HTTP port 8000)")
    classify.add_argument("--protocol", choices=["grpc", "http"], default="grpc", help="default: grpc")
    classify.add_argument("--model", default="classifier", help="default: classifier")
    classify.add_argument("--top", type=int, default=5, metavar="N", help="classes an image (default: 5)")
    classify.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="for one image (default: 30)")
    classify.add_argument("--concurrency", type=int, default=8, metavar="N", help="requests in flight (default: 8)")
    classify.add_argument("--json", action="store_true", help="JSON lines for programs")
    return classify, parser.parse_args(arguments)


def _classify(
    classifier: Classifier, arguments: list[str], top: int, concurrency: int, quiet: bool
) -> Iterator[tuple[str, Outcome]]:
    found = list(expand(arguments))
    outcomes = classifier.classify_stream((path for path, problem in found if problem is None), top, concurrency)
    progress = not quiet and len(found) > 1 and sys.stderr.isatty()
    shown = track(
        found, "classifying", console=Console(stderr=True), transient=True, disable=not progress
    )  # on stderr, so that stdout can be piped
    return _merge(shown, outcomes)


def _merge(found: Iterable[tuple[str, str | None]], outcomes: Iterator[Outcome]) -> Iterator[tuple[str, Outcome]]:
    for path, problem in found:
        yield path, next(outcomes) if problem is None else InvalidImageError(problem)


def _print_json(results: Iterator[tuple[str, Outcome]]) -> int:
    status = 0
    for path, outcome in results:
        line: dict[str, Any] = {"image": path}
        if isinstance(outcome, ClassifierError):
            status = 1
            line["error"] = {"type": type(outcome).__name__, "message": outcome.message}
        else:
            line["predictions"] = [asdict(prediction) for prediction in outcome]
        print(json.dumps(line), flush=True)
    return status


def _print_table(results: Iterator[tuple[str, Outcome]]) -> int:
    table = Table("image", "label", "index", "probability")
    table.columns[0].overflow = table.columns[1].overflow = "fold"
    table.columns[2].justify = table.columns[3].justify = "right"
    errors = []
    for path, outcome in results:
        if isinstance(outcome, ClassifierError):
            errors.append((path, outcome))
            continue
        for rank, answer in enumerate(outcome):
            last = rank == len(outcome) - 1
            name = Text(path if rank == 0 else "")  # Text: a file's or label's name is no markup
            table.add_row(name, Text(answer.label), str(answer.index), f"{answer.probability:.2%}", end_section=last)
    if table.row_count:
        Console().print(table)
    for path, error in errors:
        print(f"{path}: {error.message}", file=sys.stderr)
    if errors:
        print(f"{len(errors)} not answered", file=sys.stderr)
    return 1 if errors else 0
