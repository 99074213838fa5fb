"""Classify the images that arrive in a folder, until Ctrl-C.

Prints a line for each image once it is complete (its size and time unchanged between two looks): first for those that
are already there, and again for one that is replaced. Images that the server did not answer are sent again at the next
look. If the server or the folder goes away, as with an unmounted disk, one line says so; when the folder is back,
images that were answered are not sent again.
"""

import argparse
import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TypeAlias

from client._classifier import Classifier
from client._errors import ClassifierError, InvalidImageError
from client._session import Outcome
from client._sources import find_images
from client.commands._options import add_concurrency, add_format_options
from client.commands._results import Results, open_results
from client.options import UsageError, add_number, add_server_options, open_classifier, positive, whole

State: TypeAlias = tuple[int, int, bool]  # modification time in nanoseconds, size, whether it may be read
Problem: TypeAlias = tuple[str, type[ClassifierError] | None]  # an image and its kind of error; None: no folder
REMEMBERED = 100_000  # answered images, at most, of folders that have gone


class Arrivals:
    """New and changed images below `folder`."""

    def __init__(self, folder: Path, skip_present: bool) -> None:
        self._folder, self._is_mount = folder, os.path.ismount(folder)
        self._seen = _states(folder)
        self._answered: dict[str, State] = dict(self._seen) if skip_present else {}

    def are_there(self) -> bool:
        """Whether the folder is there; a disk that was unmounted leaves an empty one."""
        return os.path.isdir(self._folder) and os.path.ismount(self._folder) >= self._is_mount

    def ready(self) -> list[str]:
        """Return the images that have not changed since the last look and were not answered in this state."""
        before, self._seen = self._seen, _states(self._folder)
        missing = [name for name in self._answered if name not in self._seen]
        there = {folder for folder in map(os.path.dirname, missing) if os.path.isdir(folder)}
        away = [name for name in missing if os.path.dirname(name) not in there]  # their folder may come back
        kept = self._seen.keys() | set(away[-REMEMBERED:])
        self._answered = {name: state for name, state in self._answered.items() if name in kept}
        return [
            name
            for name, state in self._seen.items()
            if before.get(name) == state and self._answered.get(name) != state
        ]

    def answered(self, name: str) -> None:
        self._answered[name] = self._seen[name]


class LineResults(Results):
    """For people: one line an image."""

    def write(self, image: str, outcome: Outcome) -> None:
        if isinstance(outcome, ClassifierError):
            print(f"{image}: {outcome.message}", file=sys.stderr, flush=True)
        else:
            print(image, *(f"{found.label}\t{found.probability:.2%}" for found in outcome), sep="\t", flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to watch, at any depth")
    add_format_options(parser)
    parser.add_argument("--new-only", action="store_true", help="skip the images that are there at the start")
    add_number(parser, "--interval", positive, 1.0, "SECONDS", "time between two looks at the folder")
    parser.add_argument(
        "--top",
        type=whole(1),
        metavar="N",
        help="classes to return for each image (default: 1, with --json and --csv 5)",
    )
    add_concurrency(parser)
    add_server_options(parser)


def run(options: argparse.Namespace) -> int:
    """Watch until Ctrl-C; it does not return."""
    if not options.folder.is_dir():
        raise UsageError(f"{options.folder} is not a folder: name one that exists")
    options.top = options.top or (1 if options.format == "table" else 5)
    results = LineResults() if options.format == "table" else open_results(options.format)
    with open_classifier(options, Classifier) as classifier:
        arrivals = Arrivals(options.folder, options.new_only)
        told: Problem | None = None
        while True:
            time.sleep(options.interval)
            problems, line = _look(arrivals, classifier, options, results)
            if told not in problems:  # a server that is away for an hour is one line
                told = next(iter(problems), None)
                if line:
                    print(line, file=sys.stderr, flush=True)


def _look(
    arrivals: Arrivals, classifier: Classifier, options: argparse.Namespace, results: Results
) -> tuple[list[Problem], str]:
    """Classify the images that are ready; return what was in the way, and a line that says it."""
    if not arrivals.are_there():
        return [("", None)], f"{options.folder} is gone: waiting until it is back"
    names = arrivals.ready()
    put_off: dict[str, ClassifierError] = {}
    outcomes = classifier.classify_stream(names, options.top, options.concurrency)
    for name, outcome in zip(names, outcomes, strict=True):
        if isinstance(outcome, ClassifierError) and not isinstance(outcome, InvalidImageError):
            put_off[name] = outcome
        else:
            results.write(name, outcome)
            arrivals.answered(name)
    first = next(iter(put_off), "")
    line = f"{len(put_off)} put off, first {first}: {put_off[first].message}" if put_off else ""
    return [(name, type(error)) for name, error in put_off.items()], line


def _states(folder: Path) -> dict[str, State]:
    states = {}
    for path in find_images(folder, unread=[]):  # a folder that went away holds none
        with contextlib.suppress(OSError):  # gone meanwhile
            found = path.stat()
            states[str(path)] = (found.st_mtime_ns, found.st_size, os.access(path, os.R_OK))
    return states
