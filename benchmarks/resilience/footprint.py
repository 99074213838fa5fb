"""What a server holds on this machine, counted before and after: what has grown has leaked."""

import contextlib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Footprint:
    """`descriptors` and `threads` are the supervising process's own; `processes` lie below it."""

    processes: int
    descriptors: int
    threads: int
    shm_files: int
    folders: int

    @classmethod
    def of(cls, pid: int, names: Iterable[str], shared_memory: Path, temporary: Path) -> "Footprint":
        """`names`: what the servers of this supervisor call their private folders; shared-memory files begin so too."""
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
    """The tritonserver below a supervisor; None while there is none."""
    return next((each for each in _children(pid) if _name(each) == "tritonserver"), None)


def backends_of(pid: int) -> list[psutil.Process]:
    """The processes of the Python models below a supervisor."""
    return [each for each in _children(pid) if _name(each).startswith("triton_python")]


def _children(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).children(recursive=True)
    return []


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""
