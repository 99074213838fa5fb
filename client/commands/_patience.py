"""Wait for a server that stops in the middle of many images; if it does not come back, the rest is not sent."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from client._errors import (
    ClassifierError,
    DeadlineExceededError,
    ModelNotFoundError,
    ProtocolError,
    ServerUnavailableError,
)
from client._session import Outcome

Item = TypeVar("Item")
PAUSE = 1.0  # seconds between two attempts


class Patience(Generic[Item]):
    """A thread-safe `ask` that is repeated while no server is there, for `seconds` if one has answered before.

    The image at which the wait ends gets its error; later ones get None, and are not sent. An image that times out is
    not asked again; if all, of two or more, time out for `seconds`, the servers hang, and the rest is not sent. Nor is
    it if the first answer is that the model does not exist, or a `ProtocolError`, as of a wrong address or key.
    `ended_by`: the error at which the rest was given up, None for a silence.
    """

    def __init__(self, ask: Callable[[Item], Outcome], seconds: float) -> None:
        self._ask, self._seconds = ask, seconds
        self._answered: float | None = None  # when a server last answered
        self._silent: float | None = None  # since when all requests have timed out
        self._told = False
        self.ended_by: ClassifierError | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, item: Item) -> "Outcome | None":
        since = None
        while not self._over.is_set():
            asked = time.monotonic()
            outcome = self._ask(item)
            if isinstance(outcome, DeadlineExceededError):
                self._note_silence(outcome, asked)
                return outcome
            wrong = isinstance(outcome, (ModelNotFoundError, ProtocolError)) and self._answered is None
            if isinstance(outcome, list) or not (isinstance(outcome, ServerUnavailableError) or wrong):
                self._note(outcome)
                return outcome
            since = since or time.monotonic()
            if self._is_enough(outcome, since):
                return outcome
            self._over.wait(PAUSE)
        return None

    def end(self) -> None:
        """Send no more images."""
        self._over.set()

    def _note(self, outcome: Outcome) -> None:
        """Record that a server answered, unless nothing was sent, as for a file that is not there."""
        if isinstance(outcome, ClassifierError) and not outcome.attempts:
            return
        with self._lock:
            self._answered, self._silent, self._told = time.monotonic(), None, False

    def _note_silence(self, error: DeadlineExceededError, asked: float) -> None:
        with self._lock:
            if self._answered is not None and self._answered > asked:
                return  # others were answered meanwhile
            if self._silent is not None and time.monotonic() - self._silent >= self._seconds:
                self._over.set()
                return
            if self._silent is None:  # one late image is no silence yet, even if it took `seconds`
                self._silent = asked
            self._tell(error)

    def _is_enough(self, error: ClassifierError, since: float) -> bool:
        """Whether to give up the image; if none was answered since it first failed, all others are given up too."""
        with self._lock:
            if self._over.is_set():
                return False
            if self._answered is None or time.monotonic() - since >= self._seconds:
                if self._answered is None or self._answered < since:
                    self.ended_by = error
                    self._over.set()
                return True
            self._tell(error)
            return False

    def _tell(self, error: ClassifierError) -> None:
        if self._seconds and not self._told and not self._over.is_set():
            print(f"waiting for a server, {self._seconds:g} s at most: {error.message}", file=sys.stderr)
            self._told = True
