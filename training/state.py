"""The state of a run: one file, replaced atomically, from which the run resumes exactly; and the end of a run."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from models.files import lock_folder, replace_file
from models.weight_files import first_line
from models.weights import WEIGHTS_FILE
from training import distributed
from training.lists import VAL_LIST
from training.logs import LOG_FILE
from training.outputs import check_folder
from training.settings import ARGUMENTS_FILE, SettingsError, check_same, json_object

STATE_FILE = "state.pt"


class StateError(OSError):
    """A state that could not be written or read; the message names the file and what is still there."""


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `folder`/state.pt, delaying Ctrl-C until it is complete. A `StateError` leaves the earlier state."""
    path = folder / STATE_FILE

    def write(to: Path) -> None:
        with to.open("wb") as file:
            torch.save(state, file)

    try:
        with signal_noted(signal.SIGINT) as interrupted:  # torch's writer would turn it into an error about the file
            replace_file(path, write)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        kept = "the state before it is kept" if path.exists() else "nothing is saved yet"
        reason = first_line(error.__cause__ or error)
        raise StateError(f"{path} cannot be written ({reason}): {kept}; make room and resume") from error
    if interrupted():
        raise KeyboardInterrupt


@contextmanager
def signal_noted(number: int) -> Iterator[Callable[[], bool]]:
    """Only record the signal inside the block; the yielded function tells if it came. Works only in the main thread."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = signal.signal(number, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(number, before)


def load_state(folder: Path) -> dict[str, Any] | None:
    """Load the state in `folder`, None if there is none, memory-mapped so that the processes of a machine share it.

    Raises `StateError` for a damaged file.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle raises anything
        raise StateError(f"{path} is damaged ({first_line(error)}): start over with --resume never") from error


def check_same_step(step: int, folder: Path, device: torch.device) -> None:
    """Raise `SettingsError` in every process unless all have found the same `step` in `folder`."""
    steps = distributed.all_gather_rows(torch.tensor([step], device=device)).tolist()
    if len(set(steps)) > 1:
        raise SettingsError(
            f"processes 0 to {len(steps) - 1} find {folder} at steps {steps}: give all machines one shared "
            "folder as --output, or start over with --resume never"
        )


def is_finished(output: Path) -> bool:
    """Whether `output` holds a finished run or another checkpoint."""
    return (output / WEIGHTS_FILE).exists()


def metrics_of(output: Path, arguments: dict[str, Any], defaults: dict[str, Any]) -> dict[str, float]:
    """Return the last record of a finished run. Raises `SettingsError` if its arguments are missing or differ from
    `arguments` (`defaults`: see `check_same`), `ValueError` if they or the log are damaged.
    """
    path, log = output / ARGUMENTS_FILE, output / LOG_FILE
    if not (path.exists() and log.exists()):
        raise SettingsError(f"{output} holds a checkpoint: name another --output, or replace it with --resume never")
    check_same(json_object(path, path.read_bytes()), arguments, output, defaults)
    return json_object(log, (log.read_bytes().splitlines() or [b""])[-1])


def publish(last: Path, output: Path) -> None:
    """Move the finished checkpoint to `output`, the model file last, as it marks a finished run."""
    files = sorted(path for path in last.iterdir() if path.suffix in (".json", ".jsonl", ".csv"))
    if not (last / VAL_LIST).exists():
        (output / VAL_LIST).unlink(missing_ok=True)  # of another run, that held out other images
    for path in [*files, last / WEIGHTS_FILE]:
        replace_file(output / path.name, partial(shutil.copyfile, path))
    discard(last)


@contextmanager
def open_run(output: Path, arguments: dict[str, Any], afresh: bool) -> Iterator[None]:
    """Create `output`/last, lock `output` so that only this process trains there, and `publish` when the block ends.
    `afresh`: discard an earlier run. Raises `SettingsError` if nothing can be written, or another process trains there.
    """
    check_folder("--output", output)
    output.mkdir(parents=True, exist_ok=True)
    last = output / "last"
    with _held(output):
        if afresh:
            discard(last)
        last.mkdir(exist_ok=True)
        (last / ARGUMENTS_FILE).write_text(json.dumps(arguments, indent=2) + "\n")
        yield
        publish(last, output)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    held: set[int] = set()
    try:
        held.add(lock_folder(folder))
    except BlockingIOError:
        raise SettingsError(f"--output {folder}: another run is training there: name another folder") from None
    except OSError:  # a file system without locks
        pass
    _handles.update(held)
    try:
        yield
    finally:
        _handles.difference_update(held)
        for handle in held:
            os.close(handle)


def _let_go() -> None:
    """Close the locks' handles in a forked worker, which may outlive its run and would keep the folder locked."""
    while _handles:
        os.close(_handles.pop())


_handles: set[int] = set()  # of held folders
os.register_at_fork(after_in_child=_let_go)


def discard(last: Path) -> None:
    """Remove a run in progress, if there is one: the state first, so that half a last/ is never resumed."""
    (last / STATE_FILE).unlink(missing_ok=True)
    if last.exists():
        shutil.rmtree(last)
