"""Hundreds of restarts of the embedded server, killed and stopped in turn: does each leave something behind?"""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.resilience.footprint import SHARED_MEMORY, Footprint, backends_of, middle, tritonserver_of
from server import TritonServer, supervisor

SECONDS = 180.0  # for one restart, even on a busy machine
WINDOW = 9  # footprints that are compared: the first ones and the last ones


def restart(repository: Path, count: int) -> dict[str, Any]:
    """Restart `count` times. A third each: kill -9 of tritonserver; of a Python process (or tritonserver, if there is
    none); a stop and a new start."""
    names: set[str] = set()
    seconds: list[float] = []
    prints: list[Footprint] = []
    ways: Counter[str] = Counter()
    before = _footprint(names).processes  # of this process, not only the servers'
    server = _start(repository, names)
    try:
        for number in range(count + 1):
            prints.append(_footprint(names))
            if number == count:
                break
            begun = time.monotonic()
            way = ("kill -9 of tritonserver", "kill -9 of a Python process", "stop and start")[number % 3]
            if way == "stop and start":
                server.stop()
                server = _start(repository, names)
            else:
                tritonserver, backends = tritonserver_of(os.getpid()), backends_of(os.getpid())
                assert tritonserver is not None, "a server that says ready has a tritonserver"
                way = way if backends else "kill -9 of tritonserver"
                _kill(server, (tritonserver if way == "kill -9 of tritonserver" else backends[0]).kill)
            ways[way] += 1
            seconds.append(time.monotonic() - begun)
            print(f"restart {number + 1} of {count}: {way}, {seconds[-1]:.1f} s, {prints[-1]}", flush=True)
    finally:
        server.stop()
    after = _footprint(names)
    first, last = middle(prints[3 : 3 + WINDOW]), middle(prints[-WINDOW:])  # without the first restart of each kind
    return {
        "restarts": count,
        "ways": ways,
        "seconds_median": round(float(np.median(seconds)), 2),
        "seconds_most": round(max(seconds), 2),
        "first": first,
        "last": last,
        "growth": {name: last[name] - first[name] for name in first},
        "left_after_stop": {
            "processes": after.processes - before,
            "shm_files": after.shm_files,
            "folders": after.folders,
        },
    }


def _footprint(names: set[str]) -> Footprint:
    return Footprint.of(os.getpid(), names, SHARED_MEMORY, Path(tempfile.gettempdir()))


def _start(repository: Path, names: set[str]) -> TritonServer:
    # A window so short that no two failures fall into it: it never gives up, and never pauses.
    server = TritonServer(repository, start_timeout=SECONDS)
    with patch.object(supervisor, "RESTART_WINDOW", 0.001):
        server.start()
    names.add(server.launch.runtime.folder.name)
    return server


def _kill(server: TritonServer, kill: Callable[[], None]) -> None:
    goal = server.restarts + 1
    kill()
    end = time.monotonic() + SECONDS
    while not (server.ready and server.restarts == goal):
        if time.monotonic() > end:
            raise TimeoutError(f"the server is not back after {SECONDS:g} s: see restarts.py")
        time.sleep(0.02)
