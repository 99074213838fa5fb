"""The output folder of `explain`: a picture for each image, and explained.csv, which names the image of each."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from client._prediction import Prediction
from client._sources import STDIN, URL_SCHEMES
from client.options import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

TABLE_FILE = "explained.csv"
COLUMNS = ("image", "label", "probability", "picture")
LONGEST_NAME = 200  # bytes; a file's name has 255 at most
CONTINUED = bytes(range(0x80, 0xC0))  # UTF-8's continuation bytes


class Overlays:
    """Pictures in `folder` for `names`. An image's own picture of an earlier run is replaced, any other file kept.

    Raises `UsageError` if the folder cannot be made, or this command did not write its table.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--output {folder} cannot be a folder ({error.strerror}): name another") from None
        self._folder = folder
        self._rows: dict[str, tuple[str, ...]] = {}  # of this run, by picture
        owners = {picture: row[0] for picture, row in self._read().items()}
        self._pictures: dict[str, str] = {}
        taken: set[str] = set()
        for name in names:
            number, picture = 1, _picture(name, 1)
            while picture in taken or not self._is_free(picture, owners.get(picture), name):
                number += 1
                picture = _picture(name, number)
            taken.add(picture)
            self._pictures[name] = picture

    def save(self, name: str, picture: "Image", best: Prediction) -> None:
        data = io.BytesIO()
        picture.save(data, "PNG")
        self._write(self._pictures[name], data.getvalue())
        row = (_whole(name), best.label, str(best.probability), self._pictures[name])
        self._rows[self._pictures[name]] = row

    def finish(self) -> None:
        """Write the table: the saved pictures, and its earlier rows whose pictures are still there."""
        if self._rows:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([COLUMNS, *(self._read() | self._rows).values()])
            self._write(TABLE_FILE, text.getvalue().encode(errors="surrogateescape"))

    def _is_free(self, picture: str, owner: str | None, name: str) -> bool:
        if owner is None:
            return not (self._folder / picture).exists()
        return owner == _whole(name) and name != STDIN  # standard input is another image each time

    def _read(self) -> dict[str, tuple[str, ...]]:
        path = self._folder / TABLE_FILE
        try:
            with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
                header, *rows = map(tuple, csv.reader(file))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, csv.Error):  # ValueError: no line
            header, rows = (), []
        if header != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
            raise UsageError(f"{path} was not written by this command: name another --output, or remove it")
        return {row[3]: row for row in rows if (self._folder / row[3]).exists()}

    def _write(self, name: str, content: bytes) -> None:
        """Write a file atomically: a full disk leaves no part of it."""
        path, draft = self._folder / name, self._folder / f".{name}.{os.getpid()}"
        try:
            draft.write_bytes(content)
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise OSError(
                f"{path} cannot be written ({error.strerror}): make room, or name another --output"
            ) from error


def _whole(name: str) -> str:
    return name if name == STDIN or name.startswith(URL_SCHEMES) else os.path.abspath(name)


def _picture(name: str, number: int) -> str:
    stem = "stdin" if name == STDIN else Path(name).name
    if len(encoded := os.fsencode(stem)) > LONGEST_NAME:
        stem = os.fsdecode(encoded[-LONGEST_NAME:].lstrip(CONTINUED))
    return f"{stem}.explained{'' if number == 1 else f'.{number}'}.png"
