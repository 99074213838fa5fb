"""A file of results from which an interrupted run is continued: no image is asked twice, no answer is lost."""

import contextlib
import csv
import fcntl
import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client._errors import InvalidImageError
from client._session import Outcome
from client.commands._results import CsvResults, JsonResults, Results
from client.options import UsageError

REFUSED = InvalidImageError.__name__  # with a request id: the server refused it, and would again
JSON_START, CSV_START = '{"image": "', ",".join(CsvResults.COLUMNS) + "\n"
SUFFIXES = {".jsonl": "json", ".json": "json", ".ndjson": "json", ".csv": "csv"}


class Journal:
    """The file at `path`: each result is appended and flushed whole. `done`: image -> whether it was answered.

    Of an earlier run, answers and pictures that the server refused are kept; all other images are asked again.

    Raises:
        UsageError: the file exists and `resume` is False; another process writes it; `classify` did not write it; its
            format is not known; its answers were written with another `top` (`write` raises this too: if they have
            fewer classes, only a new answer tells whether the model has no more).
    """

    def __init__(self, path: Path, kind: str, resume: bool, top: int) -> None:
        self._path = path
        kind = SUFFIXES.get(path.suffix.lower(), "") if kind == "table" else kind
        if not kind:
            raise UsageError(f"--output {path}: name it .jsonl or .csv, or say --json or --csv")
        if path.exists() and not path.is_file():  # /dev/stdout, or a shell's >(...)
            raise UsageError(
                f"--output {path} is not a file that can be continued: name one, or use > with --json, --csv"
            )
        if path.exists() and not resume:
            raise UsageError(f"--output {path} exists already: continue it with --resume, or remove it")
        try:
            self._file = path.open("a+", encoding="utf-8", errors="surrogateescape", newline="")
        except OSError as error:
            raise UsageError(f"--output {path} cannot be written ({error.strerror}): name another file") from None
        try:
            self._continue(kind == "json", top)
        except BaseException:
            self.__exit__()  # the error's traceback would keep it open and locked
            raise

    def _continue(self, is_json: bool, top: int) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--output {self._path}: another process is writing it: name another file") from None
        except OSError as error:
            raise UsageError(
                f"--output {self._path} cannot be locked ({error.strerror}): name a file on another disk"
            ) from None
        self._file.seek(0)
        try:
            read = _read_json if is_json else _read_csv
            self.done, kept, self._classes = read(self._file.read())  # classes of each answer; 0: no answers
        except UsageError as error:
            raise UsageError(f"--output {self._path}: {error}") from None
        self._check_classes(min(top, self._classes))
        with self._named():
            self._replace(kept)
            file = self._file
            self._results: Results = JsonResults(file) if is_json else CsvResults(file, header=not kept)

    def write(self, image: str, outcome: Outcome) -> None:
        if isinstance(outcome, list):
            self._check_classes(len(outcome))
        with self._named():
            self._results.write(image, outcome)

    def finish(self) -> None:
        with self._named():
            self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # a failed write, which was raised already
            self._file.close()

    def _check_classes(self, count: int) -> None:
        if self._classes and count != self._classes:
            raise UsageError(
                f"--output {self._path} was written with --top {self._classes}, not {count}: "
                f"give --top {self._classes}, or name another file"
            )

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Name the file in an `OSError`: a full disk's error does not."""
        try:
            yield
        except OSError as error:
            raise OSError(f"--output {self._path}: {error.strerror}: make room, then go on with --resume") from error

    def _replace(self, kept: str) -> None:
        """Replace the file by the lines `kept`, atomically: a crash meanwhile loses none of them."""
        self._file.seek(0)
        if self._file.read() == kept:
            return
        path = Path(os.path.realpath(self._path))  # a link stays one
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        file = draft.open("a+", encoding="utf-8", errors="surrogateescape", newline="")
        try:
            file.write(kept)
            file.flush()
        except OSError:
            draft.unlink()
            with contextlib.suppress(OSError):  # the same once more
                file.close()
            raise
        fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(OSError):  # a file system without modes
            os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(self._file.fileno()).st_mode))
        draft.replace(path)
        self._file.close()
        self._file = file


def _stays(error: str, request_id: str | None) -> bool:
    """Whether to keep a result: an answer (no error), or a picture that the server refused."""
    return not error or (error == REFUSED and bool(request_id))


def _read_json(text: str) -> tuple[dict[str, bool], str, int]:
    """Return the images, the lines to keep, and how many classes the first answer has (0: there is none).

    Raises `UsageError`.
    """
    done, kept, classes = {}, [], 0
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not line.endswith("\n") and JSON_START.startswith(line[: len(JSON_START)]):
            break  # cut off
        try:
            entry: Any = json.loads(line)
            image, error = str(entry["image"]), {"type": ""} if "predictions" in entry else entry["error"]
            stays = _stays(error["type"], error.get("request_id"))
            classes = classes or len(entry.get("predictions", ()))
        except (ValueError, LookupError, TypeError, RecursionError):
            raise _unknown(number) from None
        if stays:
            done[image] = not error["type"]
            kept.append(line)
    return done, "".join(kept), classes


def _read_csv(text: str) -> tuple[dict[str, bool], str, int]:
    """Do as `_read_json`. The last image may lack rows, so it is asked again."""
    if CSV_START.startswith(text):  # cut off in the header, or nothing behind it
        return {}, "", 0
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        lines = [(reader.line_num, row) for row in reader]
    except csv.Error:
        raise _unknown(reader.line_num) from None
    if lines[0][1] != [*CsvResults.COLUMNS]:
        raise _unknown(1)
    if not text.endswith("\n") or text.count('"') % 2:  # cut off in a row, in its quotes
        lines.pop()
    for number, row in lines:
        if len(row) != len(CsvResults.COLUMNS):
            raise _unknown(number)
    rows = [row for _, row in lines[1:]]
    kept = [row for row in rows if row[0] != rows[-1][0] and _stays(row[5], row[7])]
    if not kept:
        return {}, "", 0
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([CsvResults.COLUMNS, *kept])
    answered = [row[0] for row in kept if not row[5]]
    return {row[0]: not row[5] for row in kept}, written.getvalue(), answered.count(answered[0]) if answered else 0


def _unknown(line: int) -> UsageError:
    return UsageError(f"line {line} was not written by classify in this format: name another file, or its format")
