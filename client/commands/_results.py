"""Answers as a table for people, as JSON lines or as CSV for programs."""

import csv
import io
import json
import sys
from dataclasses import asdict, astuple
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from client._errors import ClassifierError
from client._session import Outcome

if TYPE_CHECKING:
    from rich.table import Table


class Results(Protocol):
    def write(self, image: str, outcome: Outcome) -> None: ...

    def finish(self) -> None:
        return None  # most write each result at once


class JsonResults(Results):
    """One object a line, in order."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, image: str, outcome: Outcome) -> None:
        line: dict[str, Any] = {"image": image}
        if isinstance(outcome, ClassifierError):
            line["error"] = {"type": type(outcome).__name__, "message": outcome.message}
            if outcome.request_id is not None:
                line["error"]["request_id"] = outcome.request_id
        else:
            line["predictions"] = [asdict(prediction) for prediction in outcome]
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()


class CsvResults(Results):
    """One row a prediction; for an image that was not answered, one row with the error's type and message."""

    COLUMNS = ("image", "rank", "label", "index", "probability", "error", "message", "request_id")

    def __init__(self, stream: TextIO, header: bool = True) -> None:
        self._stream = stream
        if header:
            self._write([self.COLUMNS])

    def write(self, image: str, outcome: Outcome) -> None:
        if isinstance(outcome, ClassifierError):
            self._write([(image, "", "", "", "", type(outcome).__name__, outcome.message, outcome.request_id or "")])
            return
        self._write([(image, rank, *astuple(p), "", "", "") for rank, p in enumerate(outcome, start=1)])

    def _write(self, rows: list[tuple[Any, ...]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._stream.write(text.getvalue())
        self._stream.flush()


class TableResults(Results):
    """A table at the end; errors on standard error."""

    def __init__(self) -> None:
        from rich.table import Table

        self._table = Table("image", "label", "index", "probability")
        self._table.columns[0].overflow = self._table.columns[1].overflow = "fold"
        self._table.columns[2].justify = self._table.columns[3].justify = "right"
        self._errors: list[tuple[str, ClassifierError]] = []

    def write(self, image: str, outcome: Outcome) -> None:
        from rich.text import Text

        if isinstance(outcome, ClassifierError):
            self._errors.append((image, outcome))
            return
        for rank, answer in enumerate(outcome):
            last = rank == len(outcome) - 1
            name = Text(image if rank == 0 else "")  # Text: a file's or label's name is no markup
            cells = (Text(answer.label), str(answer.index), f"{answer.probability:.2%}")
            self._table.add_row(name, *cells, end_section=last)

    def finish(self) -> None:
        if self._table.row_count:
            print_table(self._table)
        for image, error in self._errors:
            print(f"{image}: {error.message}", file=sys.stderr)
        if self._errors:
            print(f"{len(self._errors)} not answered", file=sys.stderr)


def print_table(table: "Table", least: int = 0) -> None:
    """Print a table as wide as the terminal, but not below `least`; without one, as wide as its rows, for grep."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 10**6)
    console.width = max(console.width, least)
    console.print(table)


def open_results(kind: str) -> Results:
    """Create the writer for `kind` (table, json or csv) to standard output."""
    if kind == "table":
        return TableResults()
    return (JsonResults if kind == "json" else CsvResults)(sys.stdout)
