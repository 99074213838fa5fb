"""A server that stops in the middle of many images is waited for; when it does not come back the rest is not sent."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from client._errors import ClassifierError, DeadlineExceededError, ServerUnavailableError
from client._session import Outcome

Item = TypeVar("Item")
PAUSE = 1.0  # seconds between two attempts


class Patience(Generic[Item]):
    """`ask`, safe from every thread, and again while no server answers: for `seconds`, where one has answered before.

    The image whose turn ends that has its error; those after it get None, and were not sent.
    """

    def __init__(self, ask: Callable[[Item], Outcome], seconds: float) -> None:
        self._ask, self._seconds = ask, seconds
        self._answered: float | None = None  # when a server last did
        self._told = False
        self._over = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, item: Item) -> "Outcome | None":
        since = None
        while not self._over.is_set():
            outcome = self._ask(item)
            if not isinstance(outcome, ServerUnavailableError):
                self._note(outcome)
                return outcome
            since = since or time.monotonic()
            if self._is_enough(outcome, since):
                return outcome
            self._over.wait(PAUSE)
        return None

    def end(self) -> None:
        """Nothing is asked any more."""
        self._over.set()

    def _note(self, outcome: Outcome) -> None:
        """What a server had no part in, such as a file that is not there, says nothing about it."""
        if isinstance(outcome, DeadlineExceededError):
            return
        if isinstance(outcome, ClassifierError) and not outcome.attempts:
            return
        with self._lock:
            self._answered, self._told = time.monotonic(), False

    def _is_enough(self, error: ServerUnavailableError, since: float) -> bool:
        """Whether the image is given up; with it all others, where none was answered since it first failed."""
        with self._lock:
            if self._over.is_set():
                return False
            if self._answered is None or time.monotonic() - since >= self._seconds:
                if self._answered is None or self._answered < since:
                    self._over.set()
                return True
            if not self._told:
                print(f"waiting for a server, {self._seconds:g} s at most: {error.message}", file=sys.stderr)
                self._told = True
            return False
