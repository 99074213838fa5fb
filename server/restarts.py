"""How often a server may fail before it is given up, and how long it rests in between."""

import time
from collections import deque

from server.errors import GaveUpError

LONGEST_REST = 30.0  # seconds


class Restarts:
    """At most `limit` within `window` seconds."""

    def __init__(self, limit: int, window: float) -> None:
        self._limit, self._window = limit, window
        self._failures: deque[float] = deque()  # their times

    def rest(self, reason: str) -> float:
        """Seconds to wait after one more failure: 0, 1, 3, 7 ... Raises `GaveUpError`."""
        self._failures.append(time.monotonic())
        while self._failures[0] < self._failures[-1] - self._window:
            self._failures.popleft()
        count = len(self._failures)
        if count > self._limit:
            raise GaveUpError(f"tritonserver failed {count} times in {self._window:g} s, at last because: {reason}")
        return min(LONGEST_REST, 2.0 ** min(count - 1, 10) - 1)  # of a thousand failures it would overflow
