"""Classify images.

A PATH is a file, a folder (searched at any depth, by suffix: jpg jpeg jfif png webp bmp gif), a quoted pattern
("photos/**/*.jpg"), - for one image on standard input, or with --allow-urls a URL.
A bad image is reported by name; the others are answered all the same.

--json writes one object a line, in order:
  {"image": "cat.jpg", "predictions": [{"label": "cat", "index": 3, "probability": 0.98}, ...]}
  {"image": "bad.jpg", "error": {"type": "InvalidImageError", "message": "no such file: check the path"}}
--csv writes one row a prediction: image, rank, label, index, probability, error, message, request_id.
--output FILE --resume continues an interrupted run: what FILE holds an answer to is not sent again, nor are pictures
that the server refused; everything else is. The exit status is that of all images.

If no server answers, the rest is not sent: after --wait seconds, or at once if none was ever there, none has the model,
or the first answer is of no classifier or refuses the caller.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from client._classifier import Classifier
from client._sources import STDIN
from client.commands._journal import Journal
from client.commands._many import answer_all, find
from client.commands._options import add_format_options, add_image_options
from client.commands._progress import progress
from client.commands._results import Results, open_results
from client.options import UsageError, add_server_options, open_classifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image_options(parser)
    add_format_options(parser)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the answers to this .jsonl or .csv file")
    parser.add_argument("--resume", action="store_true", help="continue the interrupted run that wrote --output")
    add_server_options(parser)


def run(options: argparse.Namespace) -> int:
    if options.resume and options.output is None:
        raise UsageError("--resume needs the --output that it continues")
    with contextlib.ExitStack() as stack:
        classifier = stack.enter_context(open_classifier(options, Classifier))
        found = find(options)
        results: Results
        failed = 0
        if options.output is None:
            results = open_results(options.format)
        else:
            if options.resume and STDIN in options.paths:
                raise UsageError("--resume: - may be another image each time: give it a file's name")
            journal = Journal(options.output, options.format, options.resume, options.top)
            results = stack.enter_context(journal)
            failed = sum(not journal.done.get(name, True) for name, _ in found)
            found = [each for each in found if each[0] not in journal.done]
        stack.callback(results.finish)  # Ctrl-C keeps the answers that came
        with progress(found, "classifying", options.format != "table" and options.output is None) as shown:
            tally = answer_all(
                found,
                lambda name, image: classifier.classify(image, options.top),
                options.model,
                options,
                results,
                shown,
            )
    failed += tally.failed
    if options.output is not None and failed:
        print(f"{failed} not answered: see {options.output}", file=sys.stderr)
    if tally.unsent:
        remedy = "--resume sends them" if options.output is not None else "with --output FILE, --resume can send them"
        print(f"stopped: {tally.why}, {tally.unsent} not sent: {remedy}", file=sys.stderr)
    return 1 if failed else 0
