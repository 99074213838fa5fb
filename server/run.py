"""One run of tritonserver: waits for the first inference, then watches the server until it must be restarted."""

import contextlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from server.canary import CanaryBusyError, CanaryError, classify_canary, is_ready, success_count
from server.errors import StartError
from server.log import failure_reasons
from server.process import ServerProcess
from server.repository import ENSEMBLE

TICK = 0.5  # seconds between checks of the backend processes
POLL = 0.05  # seconds between checks while starting
LONGER = "give it longer with --start-timeout, a release with --timeout"
MISSES = 3  # failed canaries in a row that cause a restart
VMSTAT = Path("/proc/vmstat")  # counts for the whole machine, whichever limit was reached
KILLED = (
    "the kernel has killed a process for lack of memory: raise the memory limit, or lower max_pixels or the number of "
    "instances"
)


def memory_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since it booted; 0 if it does not say."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(), re.MULTILINE):
            return int(found.group(1))
    return 0


@dataclass
class Run:
    """Waits for and watches a server.

    `http`: its address; `has_canary`: whether it serves a model for the canary; `kills`: `memory_kills()`
    when it last was well.
    """

    process: ServerProcess
    http: str
    has_canary: bool
    stopping: threading.Event
    kills: int = field(default_factory=memory_kills)

    def await_ready(self, timeout: float) -> None:
        """Return after the first inference, or when `stopping` is set. Raises `StartError`."""
        deadline = time.monotonic() + timeout
        while not self.stopping.wait(POLL):
            code = self.process.exit_code()
            if code is not None:
                raise StartError(self._explain(f"tritonserver ended with code {code}"))
            left = deadline - time.monotonic()
            if left <= 0:
                raise StartError(self._explain(f"tritonserver is not ready after {timeout:g} s ({LONGER})"))
            if not is_ready(self.http, min(left, 1.0)):
                continue
            try:
                self._prove(left)
            except CanaryError as error:
                if self.stopping.is_set():
                    return
                raise StartError(self._explain(f"the first inference failed, {error}")) from error
            self.process.remember_backends()
            return

    def watch(self, interval: float, timeout: float, meanwhile: Callable[[], object] = lambda: None) -> str:
        """Return why the server must be restarted, or "stopped" if `stopping` is set. Calls `meanwhile` each tick.

        A canary that is late or refused by a full queue does not count if the server has answered other requests: it is
        busy, not hung.
        """
        misses = 0
        answered = self._answered(timeout)
        next_probe = time.monotonic() + interval
        while not self.stopping.wait(TICK):
            meanwhile()
            code = self.process.exit_code()
            ended = self.process.dead_backend() if code is None else f"tritonserver ended with code {code}"
            if ended:
                return self._with_memory(ended)
            if time.monotonic() < next_probe:
                continue
            before, reason = answered, ""
            try:
                self._prove(timeout)
            except CanaryError as error:
                reason = str(error)
                answered = self._answered(timeout)
                busy = isinstance(error, CanaryBusyError) and None not in (before, answered) and answered != before
                misses = 0 if busy else misses + 1
            else:
                misses, answered, self.kills = 0, self._answered(timeout), memory_kills()
            if misses >= MISSES:
                return f"the canary inference failed {misses} times, {reason}"
            next_probe = time.monotonic() + (0 if misses else interval)
        return "stopped"

    def _prove(self, timeout: float) -> None:
        if self.has_canary:
            classify_canary(self.http, ENSEMBLE, timeout)
        elif not is_ready(self.http, timeout):
            raise CanaryError("the server does not say ready")

    def _answered(self, timeout: float) -> int | None:
        """Return how many requests the canary's model and its variants have answered, None if unknown."""
        if self.has_canary:
            with contextlib.suppress(CanaryError):
                return success_count(self.http, ENSEMBLE, timeout)
        return None

    def _with_memory(self, what: str) -> str:
        """Add to `what` that memory ran out, if the kernel has killed a process since the last good canary."""
        return f"{what} ({KILLED})" if memory_kills() > self.kills else what

    def _explain(self, what: str) -> str:
        what = self._with_memory(what)
        reasons = failure_reasons(self.process.output())
        return ": ".join([what, "; ".join(reasons)]) if reasons else what
