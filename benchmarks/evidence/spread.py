"""Mean and spread over seeds, and whether a difference between two arms is more than that."""

import statistics
from dataclasses import dataclass
from typing import Any

from scipy.stats import t as student_t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean, standard deviation (n - 1), minimum and maximum over seeds."""

    mean: float
    std: float
    least: float
    most: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        std = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.fmean(values), std, min(values), max(values), len(values))

    def verdict(self) -> str:
        """Return "gains" or "costs" if 0 is outside the 95 % interval of the seeds' mean difference."""
        if self.count < 2:
            return "one seed"
        half = float(student_t.ppf((1 + CONFIDENCE) / 2, self.count - 1)) * self.std / self.count**0.5
        if abs(self.mean) <= half:
            return "no difference shown"
        return "gains" if self.mean > 0 else "costs"


def values_of(row: dict[str, Any], metric: str) -> list[float]:
    return [seed[metric] for seed in row["seeds"]]


def spread(row: dict[str, Any], metric: str) -> Spread:
    return Spread.of(values_of(row, metric))


def difference(row: dict[str, Any], baseline: dict[str, Any], metric: str) -> Spread:
    """`row` minus `baseline`, seed by seed: the same draw of the data on both sides. Raises `ValueError` otherwise."""
    seeds, others = ([seed["seed"] for seed in part["seeds"]] for part in (row, baseline))
    if seeds != others:
        raise ValueError(f"{row['arm']} has seeds {seeds}, {baseline['arm']} has {others}: pairs are needed")
    pairs = zip(values_of(row, metric), values_of(baseline, metric), strict=True)
    return Spread.of([value - other for value, other in pairs])
