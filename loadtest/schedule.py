"""The phases as a load shape of locust."""

from collections.abc import Sequence

import gevent
from locust import LoadTestShape
from locust.runners import STATE_INIT

from loadtest.shapes import Phase


class Schedule(LoadTestShape):
    """A shape with the users of a closed loop's phases, or always with the `senders` of an open loop."""

    abstract = True  # made in an `init` listener, not found by locust

    def __init__(self, phases: Sequence[Phase], senders: int | None = None, grace: float = 0.0) -> None:
        super().__init__()
        self.grace = grace  # seconds after the last phase: workers begin a little later than their master
        self.phases = phases
        self.senders = senders

    def tick(self) -> tuple[int, float] | None:
        rest = next((phase.end for phase in self.phases if phase.end > self.get_run_time()), 0) - self.get_run_time()
        # Locust asks once a second: wait for a phase that begins before that, but not before there is any load.
        if 0 < rest < 1 and self.runner.state != STATE_INIT:  # type: ignore[union-attr]
            gevent.sleep(rest)
        now = self.get_run_time()
        phase = next((phase for phase in self.phases if phase.end > now), None)
        if phase is None:
            gevent.sleep(self.grace)
            self.runner.stop()  # type: ignore[union-attr]  # locust's own end does not wait for the workers
            return None
        users = self.senders or round(phase.level)
        return users, float(users)
