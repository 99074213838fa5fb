"""Draw where the evidence for the answer lies.

For each image the picture is written with the class map over it. The served model must have been built with
build_models.py --class-map.
"""

import argparse
import importlib.util
import io
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from client._classifier import Classifier
from client._errors import EXPLAINED
from client._overlay import overlay
from client._prediction import Prediction
from client._sources import STDIN, expand
from client.commands._many import answer_all
from client.commands._options import (
    UsageError,
    add_format_options,
    add_image_options,
    add_server_options,
    open_classifier,
)
from client.commands._progress import progress
from client.commands._results import open_results

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_NAME = 200  # bytes; a file's name has 255 at most
CONTINUED = bytes(range(0x80, 0xC0))  # what may not begin a character of UTF-8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_image_options(parser)
    parser.add_argument("--output", type=Path, default=Path("explained"), metavar="FOLDER", help="default: explained")
    add_format_options(parser)
    add_server_options(parser)


def run(options: argparse.Namespace) -> int:
    if importlib.util.find_spec("PIL") is None:  # before anything is sent
        print("the overlays are drawn with Pillow, which is not installed: pip install pillow", file=sys.stderr)
        return 1
    with open_classifier(options, Classifier) as classifier:
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--output {options.output} cannot be a folder ({error.strerror}): name another") from None
        results = open_results(options.format)
        found = list(expand(options.paths, options.allow_urls))
        pictures = _pictures(options.output, [name for name, _ in found])

        def explain(name: str, image: "bytes | str") -> list[Prediction]:
            explained = classifier.explain(image, options.top)
            _save(overlay(image, explained), pictures[name])
            return explained.predictions

        shown = progress(found, "explaining", options.format != "table")
        tally = answer_all(found, explain, options.model + EXPLAINED, options, results, shown)
    results.finish()
    if tally.answered:
        print(f"{tally.answered} overlays in {options.output}", file=sys.stderr)
    if tally.unsent:
        print(f"stopped: {tally.why}, {tally.unsent} not sent", file=sys.stderr)
    return 1 if tally.failed else 0


def _save(picture: "Image", path: Path) -> None:
    """Moved in whole: a full disk leaves no part of one."""
    draft, data = path.with_name(f".{path.name}.{os.getpid()}"), io.BytesIO()
    picture.save(data, "PNG")
    try:
        draft.write_bytes(data.getvalue())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OSError(f"{path} cannot be written ({error.strerror}): make room, or name another --output") from error


def _pictures(folder: Path, names: list[str]) -> dict[str, Path]:
    """Each image's picture; equal file names of different folders are numbered."""
    counts: Counter[str] = Counter()
    pictures = {}
    for name in names:
        stem = "stdin" if name == STDIN else Path(name).name
        if len(encoded := os.fsencode(stem)) > LONGEST_NAME:
            stem = os.fsdecode(encoded[-LONGEST_NAME:].lstrip(CONTINUED))
        counts[stem] += 1
        number = "" if counts[stem] == 1 else f".{counts[stem]}"
        pictures[name] = folder / f"{stem}.explained{number}.png"
    return pictures
