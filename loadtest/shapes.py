"""How the load goes over time: phases of one level each, in users (closed loop) or requests a second (open loop)."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

SHAPES = ("steady", "step", "spike", "soak")
SOAK_WINDOWS = 12


@dataclass(frozen=True)
class Phase:
    name: str
    level: float  # users, or requests a second
    start: float  # seconds after the start of the test
    seconds: float
    measured: bool = True  # False: warm-up

    @property
    def end(self) -> float:
        return self.start + self.seconds


def plan(
    shape: str,
    level: float,
    seconds: float,
    warm_up: float = 0.0,
    levels: Sequence[float] = (),
    peak: float = 4.0,
) -> list[Phase]:
    """The phases of a run: `warm_up` seconds that do not count, then `seconds` that do.

    steady: one level. step: up by `levels`, else 25, 50, 75 and 100 % of the level, in equal parts. spike: the level,
    `peak` times it for a fifth of the time, the level again. soak: one level in 12 windows, each judged by itself, so
    that a slow drift shows. Raises `ValueError` for another shape.
    """
    if shape == "steady":
        parts = [("steady", level, 1.0)]
    elif shape == "step":
        steps = list(levels) or [level * quarter / 4 for quarter in (1, 2, 3, 4)]
        parts = [(f"step {number}", step, 1 / len(steps)) for number, step in enumerate(steps, 1)]
    elif shape == "spike":
        parts = [("before", level, 0.4), ("spike", level * peak, 0.2), ("after", level, 0.4)]
    elif shape == "soak":
        parts = [(f"window {number}", level, 1 / SOAK_WINDOWS) for number in range(1, SOAK_WINDOWS + 1)]
    else:
        raise ValueError(f"shape is {shape!r}: choose one of {', '.join(SHAPES)}")
    phases = [Phase("warm-up", parts[0][1], 0.0, warm_up, measured=False)] if warm_up else []
    start = warm_up
    for name, height, share in parts:
        phases.append(Phase(name, height, start, seconds * share))
        start += seconds * share
    return phases


def whole_users(phases: Sequence[Phase], protocols: int) -> list[Phase]:
    """Round a closed loop's levels. Raises `ValueError` if a phase has no user for one of the protocols."""
    phases = [replace(phase, level=round(phase.level)) for phase in phases]
    for phase in phases:
        if phase.level < protocols:
            raise ValueError(
                f"{phase.name} has {phase.level} users: give at least {protocols}, one for each protocol, with "
                "--users, --levels or --peak"
            )
    return phases


def arrivals(phases: Sequence[Phase], share: float, source: random.Random) -> Iterator[float]:
    """Yield the seconds after the start at which one of several senders, with its `share` of the rate, has to send.

    A Poisson process has no memory, so it may restart with each phase; several senders make up one process.
    """
    for phase in phases:
        due = phase.start + source.expovariate(phase.level * share)
        while due < phase.end:
            yield due
            due += source.expovariate(phase.level * share)
