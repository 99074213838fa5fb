"""Draw where in each image the evidence for the answer lies.

Writes each picture with the class map drawn over it, and explained.csv, which says which image each picture shows. The
served model must have been built with build_models.py --class-map.
"""

import argparse
import contextlib
import importlib.util
import sys
from pathlib import Path

from client._classifier import Classifier
from client._errors import EXPLAINED
from client._overlay import overlay
from client._prediction import Prediction
from client.commands._many import answer_all, find
from client.commands._options import add_format_options, add_image_options
from client.commands._overlays import TABLE_FILE, Overlays
from client.commands._progress import progress
from client.commands._results import open_results
from client.options import add_server_options, open_classifier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image_options(parser)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("explained"),
        metavar="FOLDER",
        help="folder for the pictures and explained.csv (default: explained)",
    )
    add_format_options(parser)
    add_server_options(parser)


def run(options: argparse.Namespace) -> int:
    if importlib.util.find_spec("PIL") is None:  # before anything is sent
        print("the overlays are drawn with Pillow, which is not installed: pip install pillow", file=sys.stderr)
        return 1
    with contextlib.ExitStack() as stack:
        classifier = stack.enter_context(open_classifier(options, Classifier))
        found = find(options)
        overlays = Overlays(options.output, [name for name, _ in found])
        results = open_results(options.format)
        stack.callback(results.finish)  # Ctrl-C keeps the answers that came
        stack.callback(overlays.finish)

        def explain(name: str, image: "bytes | str") -> list[Prediction]:
            explained = classifier.explain(image, options.top)
            overlays.save(name, overlay(image, explained), explained.predictions[0])
            return explained.predictions

        with progress(found, "explaining", options.format != "table") as shown:
            tally = answer_all(found, explain, options.model + EXPLAINED, options, results, shown)
    if tally.answered:
        print(f"{tally.answered} overlays in {options.output}, which {TABLE_FILE} there lists", file=sys.stderr)
    if tally.unsent:
        print(f"stopped: {tally.why}, {tally.unsent} not sent", file=sys.stderr)
    return 1 if tally.failed else 0
