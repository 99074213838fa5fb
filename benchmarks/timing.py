"""Interleaved timing, by the host's clock or another."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Step = Callable[[], Any]
SETTLE = 0.03  # seconds: ONNX Runtime's, OpenVINO's and OpenMP's threads spin for milliseconds after their work


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: the median with the 20th and 80th percentiles, and the number of calls."""

    median: float
    p20: float
    p80: float
    calls: int

    @classmethod
    def of(cls, milliseconds: list[float]) -> "Timing":
        deciles = statistics.quantiles(milliseconds, n=10, method="inclusive")
        return cls(
            round(statistics.median(milliseconds), 5), round(deciles[1], 5), round(deciles[7], 5), len(milliseconds)
        )

    def of_one(self, calls: int) -> "Timing":
        """The time of one call, where each that was timed made `calls`."""
        return Timing(round(self.median / calls, 5), round(self.p20 / calls, 5), round(self.p80 / calls, 5), self.calls)


def host_ms(run: Step) -> float:
    """Milliseconds of the host's clock that `run` takes."""
    started = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - started)


def interleaved(
    candidates: Mapping[str, Step],
    rounds: int,
    burst: int = 3,
    seconds: float = math.inf,
    settle: float = 0.0,
    clock: Callable[[Step], float] = host_ms,
) -> dict[str, Timing]:
    """Time all candidates in turn, `rounds` times, after a warm-up.

    Each turn is a burst of calls whose first is not counted: it suffers from the others' caches and spinning threads.
    `settle`: seconds at the start of a turn that are not counted either, if other runtimes' threads spin for longer.
    `seconds`: a candidate gets no further turn when its counted calls took more, so that it does not stretch the run.
    `clock`: milliseconds that a call takes.
    """
    for call in candidates.values():
        for _ in range(3):
            call()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            if sum(samples[name]) > 1000 * seconds:
                continue
            begun = time.perf_counter()
            call()
            while time.perf_counter() - begun < settle:
                call()
            for _ in range(burst - 1):
                samples[name].append(clock(call))
    return {name: Timing.of(values) for name, values in samples.items()}
