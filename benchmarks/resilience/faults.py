"""The outcome of requests while one of several servers is killed, frozen, starved or stopped, and its recovery time."""

import contextlib
import errno
import json
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.resilience.balancer import balancer
from benchmarks.resilience.digits import pictures, with_large, with_processes
from benchmarks.resilience.fleet import Member, fleet
from benchmarks.resilience.footprint import middle
from benchmarks.resilience.load import Load
from client import Classifier

SERVERS = 3
RATE = 30.0  # requests a second, half over gRPC and half over HTTP
DEADLINE = 10.0  # seconds
RETRIES = 5  # behind a balancer the next attempt may reach the same server
OPTIONS = ("--probe-interval", "2", "--probe-timeout", "3", "--drain-seconds", "5")
BEFORE = AFTER = 3.0  # seconds of load around the fault
BACK_SECONDS = 180.0  # a server that does not answer by then counts as lost
FILL = "filled-by-the-benchmark"
Folder = Callable[[Member], Path]


@dataclass(frozen=True)
class Fault:
    """A fault: `inject` breaks a server, `keep` maintains that for `lasts` seconds, `clear` removes the cause.

    If `restarts`, only a new tritonserver counts as recovered. `large`: the load includes large files that are new to
    the server.
    """

    name: str
    inject: Callable[[Member], None]
    keep: Callable[[Member], None] = lambda member: None
    clear: Callable[[Member], None] = lambda member: None
    lasts: float = 0.0
    restarts: bool = True
    large: bool = False


def kill(member: Member) -> None:
    member.tritonserver().kill()


def terminate(member: Member) -> None:
    """Stop the server as for an upgrade: it answers requests in flight and refuses later ones."""
    member.process.terminate()


def kill_backend(member: Member) -> None:
    member.backend().kill()


def freeze(member: Member) -> None:
    member.tritonserver().send_signal(signal.SIGSTOP)


def thaw(member: Member) -> None:
    with contextlib.suppress(psutil.NoSuchProcess, RuntimeError):
        member.tritonserver().send_signal(signal.SIGCONT)


def fill(folder: Folder, member: Member) -> None:
    with (folder(member) / FILL).open("ab", buffering=0) as file:
        block = bytes(1 << 16)
        while block:
            try:
                file.write(block)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                block = block[: len(block) // 2]  # to the last byte


def empty(folder: Folder, member: Member) -> None:
    (folder(member) / FILL).unlink()


FILL_MEMORY, EMPTY_MEMORY = (partial(do, lambda member: member.shared_memory) for do in (fill, empty))
FILL_DISK, EMPTY_DISK = (partial(do, lambda member: member.disk) for do in (fill, empty))
FAULTS = (
    Fault("kill -9 of tritonserver", kill),
    Fault("kill -9 of a Python process", kill_backend),
    Fault("frozen for 3 s (SIGSTOP, SIGCONT)", freeze, clear=thaw, lasts=3.0, restarts=False),
    Fault("frozen for good (SIGSTOP)", freeze),
    Fault("/dev/shm full for 10 s", FILL_MEMORY, clear=EMPTY_MEMORY, lasts=10.0, restarts=False, large=True),
    Fault("kill -9, and /dev/shm full for 10 s", kill, FILL_MEMORY, EMPTY_MEMORY, 10.0),
    Fault("kill -9, and disk full for 10 s", kill, FILL_DISK, EMPTY_DISK, 10.0),
    Fault("stopped (SIGTERM), started anew 10 s later", terminate, clear=Member.start_again, lasts=10.0),
)


def endure(repository: Path, folder: Path, faults: Sequence[Fault] = FAULTS) -> dict[str, Any]:
    """Measure every fault twice: through the balancer, and with the servers' addresses given to the client."""
    repository = with_processes(repository, folder / "with_processes")  # more can be killed, /dev/shm can be full
    rows = []
    for path in ("balancer", "client"):
        with contextlib.ExitStack() as stack:
            members = stack.enter_context(fleet(repository, folder / path, SERVERS, *OPTIONS, confined=True))
            small = pictures(members[0].grpc)
            mixed = with_large(small)
            addresses = [[member.http for member in members], [member.grpc for member in members]]
            if path == "balancer":
                front = stack.enter_context(balancer(addresses[0], addresses[1], folder / "haproxy.log"))
                addresses = [[front.http], [front.grpc]]
            classifiers = [
                stack.enter_context(Classifier(urls, protocol=protocol, timeout=DEADLINE, retries=RETRIES))
                for protocol, urls in zip(("http", "grpc"), addresses, strict=True)
            ]
            for number, fault in enumerate(faults):
                member = members[number % SERVERS]  # in turn: a supervisor waits longer after each restart
                row = suffer(fault, member, Load(classifiers, mixed if fault.large else small, RATE, DEADLINE))
                rows.append({"path": path, **row})
                print(json.dumps(rows[-1]), flush=True)
    return {
        "servers": SERVERS,
        "requests_per_s": RATE,
        "deadline_s": DEADLINE,
        "retries": RETRIES,
        "server_options": " ".join(OPTIONS),
        "rows": rows,
    }


def suffer(fault: Fault, member: Member, load: Load) -> dict[str, Any]:
    """Apply load and the fault until the member has recovered; returns what was lost and what is left behind."""
    before, restarts, old = footprint_of(member), member.restarts, member.tritonserver().pid
    with load:
        time.sleep(BEFORE)
        begun = time.monotonic()
        fault.inject(member)
        back: float | None = None
        while time.monotonic() < begun + fault.lasts:
            fault.keep(member)
            if back is None and fault.restarts:  # perhaps it recovered during the fault
                back = _seconds_if_back(member, old, begun)
            time.sleep(0.05)
        fault.clear(member)
        while back is None and time.monotonic() < begun + BACK_SECONDS:
            back = _seconds_if_back(member, old if fault.restarts else None, begun)
            time.sleep(0.05)
        time.sleep(AFTER)
    after = footprint_of(member)
    return {
        "fault": fault.name,
        **load.summary(),
        "back_s": None if back is None else round(back, 1),
        "restarts": member.restarts - restarts,
        "left_over": {
            name: after[name] - before[name] for name in ("processes", "descriptors", "shm_files", "folders")
        },
    }


def footprint_of(member: Member) -> dict[str, int]:
    """The median of several footprints, because a canary's connection is open only briefly."""
    prints = []
    for _ in range(5):
        prints.append(member.footprint())
        time.sleep(0.1)
    return middle(prints)


def _seconds_if_back(member: Member, dead: int | None, begun: float) -> float | None:
    there = _pid(member) not in (None, dead) and all(member.answers() for _ in range(3))
    return time.monotonic() - begun if there else None


def _pid(member: Member) -> int | None:
    with contextlib.suppress(RuntimeError):
        return member.tritonserver().pid
    return None
