"""One run: what it trains or measures, on which data, and from whose checkpoint."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Kind = Literal["pretrain", "finetune", "evaluate", "attack", "kernels"]


@dataclass(frozen=True)
class Data:
    """A data set that `benchmarks.evidence.data.prepare` writes.

    digits: all of scikit-learn's. photos: squares cut from photographs. labels: `size` training digits of each class,
    drawn by `seed`. long_tail: digits of class i ~ size^(-i/9), drawn by `seed`; `size` is the imbalance.
    """

    kind: Literal["digits", "photos", "labels", "long_tail"] = "digits"
    size: int = 0
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.size}-seed{self.seed}" if self.kind in ("labels", "long_tail") else self.kind


@dataclass(frozen=True)
class Run:
    """A call of the training code. `settings` are laid over the preset `digits`; `start` is the run it begins from.

    `name` is its folder below the cache: runs of one name must be equal, and are done once.
    """

    name: str
    kind: Kind
    data: Data
    seed: int
    settings: dict[str, Any] = field(default_factory=dict)
    start: "Run | None" = None

    def as_json(self) -> dict[str, Any]:
        """The values that identify the run: two runs with the same values have the same result."""
        return asdict(self)

    def chain(self) -> list["Run"]:
        """The runs that must come before this one, in order, and this one."""
        return [*(self.start.chain() if self.start else []), self]


@dataclass(frozen=True)
class Arm:
    """A row of a table: one method, a run for each seed. `group` is the table, such as a share of the labels."""

    group: str
    name: str
    runs: tuple[Run, ...]


def runs_of(arms: list[Arm]) -> list[Run]:
    """Every run of `arms` once, those that others begin from before them. Raises `ValueError` for an ambiguous name."""
    found: dict[str, Run] = {}
    for run in (step for arm in arms for last in arm.runs for step in last.chain()):
        if found.setdefault(run.name, run).as_json() != run.as_json():
            raise ValueError(f"two runs are called {run.name}: {found[run.name].as_json()} and {run.as_json()}")
    return list(found.values())
