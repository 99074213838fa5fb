"""Read labels, list files; write files and folders completely or not at all, whenever the process ends."""

import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

HIDDEN = re.compile(r"(^|/)(\.[^./]|__MACOSX(/|$))")  # .ipynb_checkpoints, ._0001.jpg: never a user's image


def files_below(folder: Path, on_error: Callable[[OSError], object] | None = None) -> Iterator[str]:
    """Yield the paths of files at any depth, in no order; links to folders are followed, each folder is read once.

    `HIDDEN` names are left out. `on_error` is called for a folder that cannot be read.
    """
    seen: set[str] = set()
    for root, folders, names in os.walk(folder, onerror=on_error, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:  # a link to a parent would lead there again and again
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not HIDDEN.match(name))
        yield from (os.path.join(root, name) for name in names if not HIDDEN.match(name))


def read_labels(path: Path) -> list[str]:
    """Read a text file in UTF-8 with one label a line; the last line may lack its end (\\n or \\r\\n).

    Raises `ValueError`, naming the line, for text that is not UTF-8 and for an empty line; `OSError`.
    """
    try:
        labels = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        line = 1 + error.object.count(b"\n", 0, error.start)
        raise ValueError(f"{path}: line {line} is not UTF-8 ({error.reason}): convert the file") from error
    if empty := [line for line, label in enumerate(labels, 1) if not label.strip()]:
        raise ValueError(f"{path}: line {empty[0]} is empty: a label is needed in each")
    return labels


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path` and rename it to `path` in one step, each flushed to the disk. Raises `OSError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask has it: safetensors makes its files private
        write(temporary)
        temporary.chmod(mode)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:  # safetensors' own error derives only from Exception
        raise OSError(f"{path} cannot be written ({error}): what was there is kept; make room and resume") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write as `replace_file`, creating the folder; a device or pipe, such as /dev/stdout, is written to directly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        write(path)
    else:
        replace_file(path, write)


@contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder to fill. It is renamed to `folder` when the block ends, and removed if the block raises."""
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        staging.mkdir(parents=True, exist_ok=True)
        yield staging
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def lock_folder(folder: Path) -> int:
    """Return a handle that holds the folder's lock until it is closed. Raises `BlockingIOError` if another process
    holds the lock, another `OSError` if the file system has no locks.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _flush(path: Path) -> None:
    """Flush a file's content, or a folder's names, to the disk, so that a power cut loses nothing."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
