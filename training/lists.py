"""Lists of labelled images, CSV with the columns image and label: what a run held out, or the predictions for it."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from models.files import write_file
from training.images import DataError, Labelled, Transform
from training.names import Names
from training.settings import first_of

VAL_LIST = "val.csv"
COLUMNS = ("image", "label")
OF_ANSWERS = ("rank", "picture")  # columns of tables whose label is a model's answer: classify's and explain's
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}  # file names may be any bytes
BOM: dict[str, Any] = {**TEXT, "encoding": "utf-8-sig"}  # with which a spreadsheet's "CSV UTF-8" begins


def is_list(path: str | Path) -> bool:
    """Whether `path` has a list's name, .csv: it need not exist, but is no folder."""
    return Path(path).suffix == ".csv" and not Path(path).is_dir()


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file completely or not at all, unless it is a device such as /dev/stdout. Raises `OSError`."""

    def write(to: Path) -> None:
        with to.open("w", **TEXT) as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)

    write_file(path, write)


def write_list(path: Path, images: Labelled) -> None:
    """Write the list of `images`, with absolute paths, so that scripts find the files from any folder."""
    labels = (images.classes[target] for target in images.targets)
    write_csv(path, COLUMNS, zip(map(os.path.abspath, images.names), labels, strict=True))


def read_list(path: Path) -> list[tuple[str, str]]:
    """Read the file and label of each line. Raises `DataError` for a malformed list, one of answers, or images that do
    not exist.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist: name a list of images, or a folder")
    with path.open(**BOM) as file:
        lines = csv.DictReader(file)
        found: list[tuple[str, str]] = []
        try:
            if answers := [column for column in OF_ANSWERS if column in (lines.fieldnames or ())]:
                why = f"its column {answers[0]} shows that its labels are a model's answers"
                raise DataError(f"{path} is not a list of images: {why}; name a list of the true ones")
            for line in lines:
                found.append((line["image"], line["label"]))
                if None in found[-1]:
                    raise DataError(f"{path}, line {lines.line_num}, is cut short: give a file and its label")
        except (KeyError, csv.Error) as error:
            what = f"no column {error}" if isinstance(error, KeyError) else error
            raise DataError(f"{path} is not a list of images ({what}): line 1 is {','.join(COLUMNS)}") from error
    if not found:
        raise DataError(f"{path} lists no image: its lines are {','.join(COLUMNS)}")
    for name, _ in found:
        if not os.path.exists(name):
            where = "if the data have moved" if os.path.isabs(name) else f"it is looked for in {os.getcwd()}"
            raise DataError(f"{path} lists {name}, which is not there: {where}, correct the list's paths")
    return found


class Listed(Labelled):
    """The images of a list, in its order. Raises `DataError` as `read_list`, and for an unknown label."""

    def __init__(
        self,
        path: Path,
        transform: Transform | None,
        labels: list[str] | None = None,
    ) -> None:
        super().__init__(transform)
        found = read_list(path)
        self.classes = labels or sorted({label for _, label in found})
        index = {label: number for number, label in enumerate(self.classes)}
        for _, label in found:
            if label not in index:
                raise DataError(f"{path}: {label} is not one of the {len(index)} labels: {first_of(self.classes)}")
        self.names = Names(name for name, _ in found)
        self.targets = [index[label] for _, label in found]
