"""Measure what the load generator can send, against a server that does nothing, in a separate local process."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadtest.results import warnings

USERS = 8  # for each protocol and process
SECONDS, WARM_UP = 3, 1
PATIENCE = 30.0  # seconds for the null server's start, and for its end

NULL_SERVER = "a server that does nothing, in a process of its own on this machine"


@contextmanager
def null_server() -> Iterator[tuple[str, str]]:
    """Start the server; yield its HTTP and gRPC addresses. Raises `RuntimeError` if it does not start."""
    command = [sys.executable, "-m", "loadtest.null_server"]
    # A session of its own: a terminal's Ctrl-C is for this process, which then ends the other.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline() if select.select([process.stdout], [], [], PATIENCE)[0] else ""
        if not said:
            raise RuntimeError(f"{' '.join(command)} does not start: run it to see why, or give --null-check off")
        ports = json.loads(said)
        yield f"127.0.0.1:{ports['http']}", f"127.0.0.1:{ports['grpc']}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate("", timeout=PATIENCE)  # it ends with its standard input
    finally:
        process.kill()
        process.communicate()


def run_load(arguments: Sequence[str]) -> dict[str, Any]:
    """Make a run in a separate process and return its result. Raises `RuntimeError` with its errors if it has none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "results.json")
        command = [sys.executable, "-m", "loadtest", "run", "--null-check", "off", *arguments, "--results", str(path)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
        try:
            _, said = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # its workers too
            process.communicate()
            raise
        if not path.is_file():
            raise RuntimeError(said.strip() or f"the run ended with {process.returncode}")
        return json.loads(path.read_text())


def null_rate(protocol: str, processes: int, images: Sequence[str] = ()) -> float:
    """The answers a second to a closed loop; with two protocols twice the slower one's. Raises `RuntimeError`."""
    with null_server() as (http, grpc):
        users = USERS * processes * (2 if protocol == "both" else 1)
        load = ["--users", str(users), "--seconds", str(SECONDS), "--warm-up", str(WARM_UP)]
        target = ["--protocol", protocol, "--host", http, "--grpc-host", grpc]
        workers = ["--processes", str(processes)] if processes > 1 else []
        result = run_load([*load, *target, *workers, *images])
    rows = result["phases"][-1]["protocols"].values()
    rate = len(rows) * min(row["answered_per_s"] for row in rows)
    if not rate:
        raise RuntimeError(
            f"the null model gave no answer ({warnings(result)}): --null-check off leaves this check out"
        )
    return rate
