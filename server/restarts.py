"""Limits how often a server is restarted, and computes the pauses between restarts."""

import time
from collections import deque

from server.errors import GaveUpError

LONGEST_REST = 30.0  # seconds


class Restarts:
    """Allows at most `limit` failures within `window` seconds."""

    def __init__(self, limit: int, window: float) -> None:
        self._limit, self._window = limit, window
        self._failures: deque[float] = deque()  # time.monotonic() of each

    def rest(self, reason: str) -> float:
        """Count a failure and return the seconds to wait: 0, 1, 3, 7 ... Raises `GaveUpError`."""
        self._failures.append(time.monotonic())
        while self._failures[0] < self._failures[-1] - self._window:
            self._failures.popleft()
        count = len(self._failures)
        if count > self._limit:
            raise GaveUpError(f"tritonserver failed {count} times in {self._window:g} s, at last because: {reason}")
        return min(LONGEST_REST, 2.0 ** min(count - 1, 10) - 1)  # the power overflows after 1,000 failures
