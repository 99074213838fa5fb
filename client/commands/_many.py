"""Ask for many images, for `classify` and `explain`: results in order; a bad image does not stop the others."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from client._errors import ClassifierError, InvalidImageError, ModelNotFoundError, ProtocolError
from client._ordered import in_order
from client._prediction import Prediction
from client._session import Outcome
from client._sources import expand, loader
from client.commands._patience import Patience
from client.commands._results import Results

MOST_SUFFIXES = 5  # that are named
Found: TypeAlias = tuple[str, str | None]  # an image's name, and what is wrong with it


@dataclass
class Tally:
    answered: int = 0
    failed: int = 0
    unsent: int = 0
    why: str = "no server answers"  # why some were not sent


def find(options: argparse.Namespace) -> list[Found]:
    """Return the images that the command line names; say how many files of its folders are passed over."""
    others: set[Path] = set()
    found = list(expand(options.paths, options.allow_urls, others))
    passed = {os.path.abspath(path) for path in others} - {os.path.abspath(name) for name, _ in found}
    if passed:
        suffixes = Counter(Path(path).suffix.lower() or "no suffix" for path in sorted(passed)).most_common()
        words = ", ".join(f"{count} {suffix}" for suffix, count in suffixes[:MOST_SUFFIXES])
        more = ", ..." if len(suffixes) > MOST_SUFFIXES else ""
        print(f"passed over, no image by suffix: {words}{more}", file=sys.stderr)
    return found


def answer_all(
    found: Sequence[Found],
    answer: Callable[[str, "bytes | str"], list[Prediction]],
    model: str,
    options: argparse.Namespace,
    results: Results,
    shown: Iterable[Found],
) -> Tally:
    """Write to `results` what `answer` returns or raises for each image, given its name and its bytes or path.

    `model`: the model that `answer` asks; `shown`: `found`, perhaps with a progress bar.
    """
    load = loader(found, options.timeout)

    def ask(each: Found) -> Outcome:
        name, problem = each
        try:
            if problem is not None:
                raise InvalidImageError(problem)
            return answer(name, load(name))
        except ClassifierError as error:
            return error

    tally = Tally()
    patience = Patience(ask, options.wait)
    try:
        for (name, _), outcome in zip(shown, in_order(patience, found, options.concurrency), strict=True):
            if outcome is None:
                tally.unsent += 1
                continue
            if isinstance(outcome, ClassifierError):
                tally.failed += 1
            else:
                tally.answered += 1
            results.write(name, outcome)
    finally:
        patience.end()
    if isinstance(patience.ended_by, ModelNotFoundError):
        tally.why = f"no server has the model {model!r}"
    elif isinstance(patience.ended_by, ProtocolError):
        tally.why = "no server takes the requests"
    return tally
