"""The state of a run: one file, replaced in one step, from which the run goes on exactly."""

import os
import pickle
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

STATE_FILE = "state.pt"


class StateError(OSError):
    """A state that could not be written or read; the message names the file and what is still there."""


def save_state(folder: Path, state: dict[str, Any]) -> None:
    """Write `folder`/state.pt, Ctrl-C held back until it is whole. Raises `StateError`, the earlier state in place."""
    path = folder / STATE_FILE
    temporary = folder / f".{STATE_FILE}.{os.getpid()}.tmp"
    try:
        with _interrupt_after(), temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        kept = "the state before it is kept" if path.exists() else "nothing is saved yet"
        raise StateError(f"{path} cannot be written ({first_line(error)}): {kept}; make room and resume") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _interrupt_after() -> Iterator[None]:
    """Ctrl-C inside raises at the end: torch's writer would turn it into an error about the file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked.is_set():
        raise KeyboardInterrupt


def load_state(folder: Path) -> dict[str, Any] | None:
    """The state in `folder`, None if there is none. Raises `StateError` for a damaged file."""
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise StateError(f"{path} is damaged ({first_line(error)}): start over with --resume never") from error


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
