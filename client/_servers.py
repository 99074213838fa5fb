"""Which of several servers is next. No input or output: it is told how each attempt ended."""

import random
import threading
import time
from collections.abc import Callable, Container
from dataclasses import dataclass

from client._errors import ClassifierError, DeadlineExceededError, ServerUnavailableError

FIRST_REST, LONGEST_REST = 1.0, 30.0  # seconds that a dead server is left alone: doubled at every failure in a row
LATE = 3  # requests in a row without an answer in time: the server hangs


@dataclass
class _Server:
    failures: int = 0  # in a row
    late: int = 0  # in a row
    out_until: float | None = None  # None: alive
    on_trial: bool = False  # one request at a time finds out whether it is back


class Servers:
    """Round robin over `count` servers, safe from every thread.

    One that cannot be reached or is not ready is left out; after a rest one request tries it, and its answer brings it
    back. Where none is alive, the one whose rest ends first is tried all the same.
    """

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._servers = [_Server() for _ in range(count)]
        self._had: set[tuple[int, str]] = set()  # the models that each has answered for
        self._next = 0
        self._clock = clock
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._servers)

    def take(self, avoid: Container[int] = ()) -> int:
        """The next in turn that is alive, none of `avoid` if another is. Report on it or release it afterwards."""
        with self._lock:
            chosen = self._choose(avoid)
            self._next = (chosen + 1) % len(self)
            self._servers[chosen].on_trial = self._servers[chosen].out_until is not None
            return chosen

    def has_other(self, avoid: Container[int]) -> bool:
        """Whether one outside `avoid` is alive, or due for a trial."""
        with self._lock:
            return any(self._available(number) for number in range(len(self)) if number not in avoid)

    def report(self, number: int, error: ClassifierError | None, model: str = "") -> None:
        """How an attempt ended: with `error`, or None for an answer of `model`."""
        with self._lock:
            if error is None:
                self._had.add((number, model))
            server = self._servers[number]
            server.on_trial = False
            server.late = server.late + 1 if isinstance(error, DeadlineExceededError) else 0
            if isinstance(error, ServerUnavailableError) or server.late >= LATE:
                rest = min(LONGEST_REST, FIRST_REST * 2 ** min(server.failures, 30))
                server.failures += 1
                server.out_until = self._clock() + rest * random.uniform(0.5, 1)
            elif server.late == 0:  # any other error is an answer of a living server
                self._servers[number] = _Server()

    def had(self, number: int, model: str) -> bool:
        """Whether it has answered for that model."""
        with self._lock:
            return (number, model) in self._had

    def hangs(self, number: int) -> bool:
        """Whether it has let so many deadlines pass, and answered nothing between them, that it was left out."""
        with self._lock:
            return self._servers[number].late >= LATE

    def release(self, number: int) -> None:
        """The attempt was given up: it says nothing about the server."""
        with self._lock:
            self._servers[number].on_trial = False

    def _available(self, number: int) -> bool:
        server = self._servers[number]
        return server.out_until is None or (not server.on_trial and server.out_until <= self._clock())

    def _choose(self, avoid: Container[int]) -> int:
        turn = [(self._next + step) % len(self) for step in range(len(self))]
        turn.sort(key=lambda number: number in avoid)
        for number in turn:
            if self._available(number):
                return number
        return min(turn, key=lambda number: (number in avoid, self._servers[number].out_until or 0.0))
