"""The resources that a server holds, counted before and after: growth is a leak."""

import contextlib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Footprint:
    """Counts of resources: `descriptors` and `threads` of the supervising process, `processes` of its children."""

    processes: int
    descriptors: int
    threads: int
    shm_files: int
    folders: int

    @classmethod
    def of(cls, pid: int, names: Iterable[str], shared_memory: Path, temporary: Path) -> "Footprint":
        """Count. `names`: the prefixes of the private folders and shared-memory files of this supervisor's servers."""
        supervisor = psutil.Process(pid)
        prefixes = tuple(names)
        return cls(
            processes=len(supervisor.children(recursive=True)),
            descriptors=supervisor.num_fds(),
            threads=supervisor.num_threads(),
            shm_files=sum(path.name.startswith(prefixes) for path in shared_memory.iterdir()),
            folders=sum(path.name.startswith(prefixes) for path in temporary.iterdir()),
        )


def middle(footprints: Sequence[Footprint]) -> dict[str, int]:
    """The median of each count: a momentary connection is not a leak."""
    rows = [asdict(each) for each in footprints]
    return {name: round(statistics.median(row[name] for row in rows)) for name in rows[0]}


def tritonserver_of(pid: int) -> psutil.Process | None:
    """A supervisor's tritonserver process; None while there is none."""
    return next((each for each in _children(pid) if _name(each) == "tritonserver"), None)


def backends_of(pid: int) -> list[psutil.Process]:
    """The processes of a supervisor's Python models."""
    return [each for each in _children(pid) if _name(each).startswith("triton_python")]


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""
