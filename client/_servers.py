"""The choice of the next of several servers. This module does no I/O: callers report how each attempt ended."""

import logging
import random
import threading
import time
from collections.abc import Callable, Container
from dataclasses import dataclass

from client._errors import (
    ClassifierError,
    DeadlineExceededError,
    InferenceError,
    QueueFullError,
    ServerUnavailableError,
)

LOG = logging.getLogger("client")
FIRST_REST, LONGEST_REST = 1.0, 30.0  # seconds that a dead or full server is left alone: doubled at each failed trial
FAULTS = 3  # timeouts and failures in a row, after which a server counts as faulty


@dataclass
class _Server:
    rests: int = 0  # in a row
    faults: int = 0  # timeouts and failures in a row
    out_until: float | None = None  # None: alive
    on_trial: bool = False  # one request at a time finds out whether it is back
    refusals: int = 0  # in a row, for a full queue
    full_until: float = 0.0  # others are asked first


class Servers:
    """Round robin over `count` servers; thread-safe.

    A server that cannot be reached, is not ready or is faulty is left out; after a rest one request tries it, and an
    answer brings it back. If none is alive, the one whose rest ends first is tried all the same. One whose queue is
    full is asked after the others for as long; if all are full they take turns.
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
        """Return the next server that is alive, outside `avoid` if possible. Report on it or release it afterwards."""
        with self._lock:
            chosen = self._choose(avoid)
            self._next = (chosen + 1) % len(self)
            self._servers[chosen].on_trial = self._servers[chosen].out_until is not None
            return chosen

    def has_other(self, avoid: Container[int]) -> bool:
        """Whether a server outside `avoid` is alive, or due for a trial."""
        with self._lock:
            return any(self._available(number) for number in range(len(self)) if number not in avoid)

    def report(self, number: int, error: ClassifierError | None, model: str = "") -> None:
        """Record how an attempt ended: with `error`, or None for an answer of `model`."""
        with self._lock:
            if error is None:
                self._had.add((number, model))
            server, now = self._servers[number], self._clock()
            was_out = server.out_until is not None
            server.on_trial = False
            server.faults = server.faults + 1 if isinstance(error, (DeadlineExceededError, InferenceError)) else 0
            if isinstance(error, ServerUnavailableError) or server.faults >= FAULTS:
                if server.out_until is None or server.out_until <= now:  # else it was sent before
                    server.out_until = now + rest(server.rests)
                    server.rests += 1
            elif isinstance(error, QueueFullError):
                server.out_until, server.rests = None, 0
                if server.full_until <= now:
                    server.full_until = now + rest(server.refusals)
                    server.refusals += 1
            elif server.faults == 0:  # any other error is an answer of a living server
                self._servers[number] = _Server()
            is_out = self._servers[number].out_until is not None
        if is_out != was_out and len(self) > 1:  # a single one is asked all the same
            change = f"left out: {error}" if is_out else "back"
            LOG.warning("server %d of %d is %s", number + 1, len(self), change)

    def had(self, number: int, model: str) -> bool:
        """Whether the server has ever answered for `model`."""
        with self._lock:
            return (number, model) in self._had

    def is_faulty(self, number: int) -> bool:
        """Whether the server was left out because it timed out or failed `FAULTS` times in a row."""
        with self._lock:
            return self._servers[number].faults >= FAULTS

    def release(self, number: int) -> None:
        """Record that an attempt was abandoned, which says nothing about the server."""
        with self._lock:
            self._servers[number].on_trial = False

    def _available(self, number: int) -> bool:
        server = self._servers[number]
        return server.out_until is None or (not server.on_trial and server.out_until <= self._clock())

    def _choose(self, avoid: Container[int]) -> int:
        turn = [(self._next + step) % len(self) for step in range(len(self))]
        now = self._clock()
        turn.sort(key=lambda number: (number in avoid, self._servers[number].full_until > now))
        for number in turn:
            if self._available(number):
                return number
        return min(turn, key=lambda number: (number in avoid, self._servers[number].out_until or 0.0))


def rest(before: int) -> float:
    """The seconds to leave a server alone after `before` rests in a row; random, so that clients spread out."""
    return min(LONGEST_REST, FIRST_REST * 2 ** min(before, 30)) * random.uniform(0.5, 1)
