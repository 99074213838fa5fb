"""The highest open-loop rate at which the objectives hold: bisection over runs that are warmed up and repeated."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from loadtest.results import measured, met, on_time


@dataclass
class Search:
    """The result of `find_capacity`."""

    capacity: float = 0.0  # requests a second; 0: not even the lowest rate tried holds
    limited: bool = False  # True: the highest rate that was allowed holds; the server can do more
    tried: dict[float, list[bool]] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)


def find_capacity(
    run: Callable[[float], dict[str, Any]],
    high: float,
    ceiling: float,
    repeats: int = 3,
    precision: float = 0.05,
    least: float = 0.0,
    tell: Callable[[dict[str, Any]], None] = lambda result: None,
) -> Search:
    """Bisect between `least`, below which no rate can hold, and `high`, doubled up to `ceiling` while it holds.

    A rate (requests a second) holds when most of its `repeats` runs meet every objective; they stop once that is
    decided. A run that misses one while its sender was late is made again, at most `repeats` times. The answer is
    within `precision` (a share) of the lowest rate that does not hold. `tell` is called with each result, whose phases
    are named by its rate and number.
    """
    search = Search()

    def holds(rate: float) -> bool:
        needed = repeats // 2 + 1
        outcomes = search.tried.setdefault(rate, [])
        spoiled = 0
        while outcomes.count(True) < needed and outcomes.count(False) <= repeats - needed:
            result = run(rate)
            search.results.append(result)
            good = met(result)
            again = result["made_again"] = not (good or on_time(result) or spoiled == repeats)
            for phase in measured(result):
                phase["name"] = f"{rate:.1f}/s ({len(search.results)}{', made again' * again})"
            if again:
                spoiled += 1
            else:
                outcomes.append(good)
            tell(result)
        return outcomes.count(True) >= needed

    low, high = least, min(high, ceiling)
    while holds(high):
        search.capacity = low = high
        if high >= ceiling:
            search.limited = True
            return search
        high = min(2 * high, ceiling)
    floor = high / 64
    while high - low > precision * high and high > floor:
        middle = (low + high) / 2
        if holds(middle):
            search.capacity = low = middle
        else:
            high = middle
    return search
