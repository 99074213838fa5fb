"""Measurements by phase and by window of time: latency histograms that workers send to the master, which adds them up.

Locust rounds times to whole milliseconds, above 100 ms to two digits. Here a bucket is 1 % wide.
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from loadtest.shapes import Phase

WIDTH = math.log(1.01)
WINDOWS = 120  # points of the time line, at most


def bucket(milliseconds: float) -> int:
    return round(math.log(max(milliseconds, 1e-3)) / WIDTH)


def middle(index: int) -> float:
    """The bucket's middle in milliseconds, at most half a per cent from any time in it."""
    return math.exp(index * WIDTH)


class Cell:
    """The requests of one protocol that were due in one phase, or in one window of time.

    `sent` and `finished` count the requests that were sent and answered in it, whenever they were due: the real load
    and throughput if the sender or the server falls behind.
    """

    def __init__(self) -> None:
        self.latency: Counter[int] = Counter()  # of answers, by bucket
        self.late: Counter[int] = Counter()  # how long after its due time a request was sent
        self.errors: Counter[str] = Counter()
        self.total_ms = 0.0
        self.max_ms = 0.0
        self.sent = self.finished = 0

    def add(self, latency_ms: float, late_ms: float, error: str | None) -> None:
        self.late[bucket(late_ms)] += 1
        if error is not None:
            self.errors[error] += 1
            return
        self.latency[bucket(latency_ms)] += 1
        self.total_ms += latency_ms
        self.max_ms = max(self.max_ms, latency_ms)

    def percentile(self, part: float) -> float | None:
        """Milliseconds that `part` of the answers' latencies do not exceed."""
        value = percentile(self.latency, part)
        return None if value is None else min(value, self.max_ms)

    def merge(self, other: "Cell") -> None:
        self.latency.update(other.latency)
        self.late.update(other.late)
        self.errors.update(other.errors)
        self.total_ms += other.total_ms
        self.max_ms = max(self.max_ms, other.max_ms)
        self.sent += other.sent
        self.finished += other.finished

    def to_wire(self) -> list[Any]:
        counters = (list(counter.items()) for counter in (self.latency, self.late, self.errors))
        return [*counters, self.total_ms, self.max_ms, self.sent, self.finished]

    @classmethod
    def from_wire(cls, wire: list[Any]) -> "Cell":
        cell = cls()
        cell.latency, cell.late = Counter(dict(wire[0])), Counter(dict(wire[1]))
        cell.errors = Counter(dict(wire[2]))
        cell.total_ms, cell.max_ms, cell.sent, cell.finished = wire[3:]
        return cell


def percentile(counts: "Counter[int]", part: float) -> float | None:
    """Milliseconds that `part` of the counted times do not exceed (nearest rank). None where nothing was counted."""
    rank, passed = math.ceil(round(part * counts.total(), 6)), 0  # 0.999 x 1000 is 999
    for index in sorted(counts):
        passed += counts[index]
        if passed >= rank:
            return middle(index)
    return None


def count_within(counts: "Counter[int]", milliseconds: float) -> int:
    """How many of the counted times are at most that long."""
    return sum(count for index, count in counts.items() if middle(index) <= milliseconds * (1 + 1e-9))


class Recorder:
    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = list(phases)
        total = phases[-1].end
        self.window = float(max(1, math.ceil(total / WINDOWS))) if math.isfinite(total) else 1.0  # seconds
        self.cells: dict[tuple[str, int, str], Cell] = {}

    def record(self, due: float, protocol: str, latency_ms: float, late_ms: float, error: str | None) -> None:
        """Record a request that was `due` seconds after the start; one due after the last phase is left out."""
        for cell in self._cells(due, protocol):
            cell.add(latency_ms, late_ms, error)
        if due < self.phases[-1].end:
            for cell in self._cells(due + late_ms / 1e3, protocol):
                cell.sent += 1
            for cell in self._cells(due + latency_ms / 1e3, protocol) if error is None else ():
                cell.finished += 1

    def _cells(self, time: float, protocol: str) -> Iterator[Cell]:
        """The cells of the phase and of the window at `time` seconds; none after the last phase."""
        if time >= self.phases[-1].end:
            return
        phase = bisect_right([phase.start for phase in self.phases], time) - 1
        for key in (("phase", phase, protocol), ("window", int(time / self.window), protocol)):
            yield self.cells.setdefault(key, Cell())

    def take(self) -> list[Any]:
        """Return all cells in a form that can be sent, and start without any."""
        cells, self.cells = self.cells, {}
        return [[*key, cell.to_wire()] for key, cell in cells.items()]

    def merge(self, wire: list[Any]) -> None:
        for kind, index, protocol, cell in wire:
            self.cells.setdefault((kind, index, protocol), Cell()).merge(Cell.from_wire(cell))
