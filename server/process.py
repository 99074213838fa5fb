"""Runs tritonserver as a process behind a guard (guard.py)."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from server.log import read_from
from server.runtime import Runtime
from server.tritonserver_options import stack_limits

GUARD = Path(__file__).resolve().parent / "guard.py"
SPARE_SECONDS = 5  # between tritonserver's own exit timeout and SIGKILL


class ServerProcess:
    """One run of tritonserver: started, watched, drained. Its output is appended to the runtime's log."""

    def __init__(self, command: list[str], runtime: Runtime, drain_seconds: int) -> None:
        self.grace = drain_seconds + SPARE_SECONDS
        self.processes: list[psutil.Process] = []  # tritonserver first, then its backend processes
        order = {
            "command": command,
            "environment": runtime.environment(),
            "grace": self.grace,
            "runtime": str(runtime.folder),
            "shm_prefix": runtime.shm_prefix,
            "stack": stack_limits(),
        }
        self._log = runtime.log
        with self._log.open("ab") as output:
            self._offset = os.fstat(output.fileno()).st_size
            self.guard = subprocess.Popen(
                [sys.executable, "-I", "-S", str(GUARD)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal reaches only the supervisor
            )
        assert self.guard.stdin is not None  # made with PIPE
        self._orders = self.guard.stdin
        self._say(json.dumps(order) + "\n")

    def output(self) -> str:
        """Return what was written to the log since the start."""
        return read_from(self._log, self._offset)

    def exit_code(self) -> int | None:
        return self.guard.poll()

    def remember_backends(self) -> None:
        """Remember the backend processes of a server that is ready; `dead_backend` then watches them."""
        self.processes = self._descendants()

    def dead_backend(self) -> str | None:
        """Describe a backend process that has died, else return None.

        If as many are alive as before, a model was reloaded, and the new ones are remembered. The end of tritonserver
        itself is reported by `exit_code`.
        """
        for backend in self.processes[1:]:
            if not is_alive(backend):
                now = [each for each in self._descendants() if is_alive(each)]
                if len(now) >= len(self.processes):
                    self.processes = now
                    return None
                return f"backend process {backend.pid} died" if is_alive(self.processes[0]) else None
        return None

    def drain(self) -> None:
        """Make tritonserver refuse new requests and end once those in flight are answered."""
        self._say("stop\n")

    def stop(self, at_once: threading.Event) -> None:
        """Drain and wait for the end. If `at_once` is set meanwhile, kill without waiting for requests in flight."""
        self.drain()
        deadline = time.monotonic() + self.grace + SPARE_SECONDS
        while self.exit_code() is None:
            if at_once.wait(0.05) or time.monotonic() > deadline:
                self.kill()

    def kill(self) -> None:
        """Kill tritonserver and its backend processes at once."""
        self._say("kill\n")
        try:
            self.guard.wait(SPARE_SECONDS * 2)
        except subprocess.TimeoutExpired:
            for process in self._descendants():
                process.kill()
            self.guard.kill()
            self.guard.wait()

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *_: object) -> None:
        if self.exit_code() is None:
            self.kill()
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()

    def _descendants(self) -> list[psutil.Process]:
        """Return tritonserver, then its backend processes."""
        try:
            return psutil.Process(self.guard.pid).children(recursive=True)
        except psutil.Error:
            return []

    def _say(self, words: str) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):  # the guard has ended
            self._orders.write(words.encode())
            self._orders.flush()


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
