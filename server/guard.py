"""The process between the supervisor and tritonserver, which cleans up even if the supervisor is killed.

It reads one JSON line (the order) on standard input, starts tritonserver in a new session and waits. "stop" drains
tritonserver (SIGTERM, then SIGKILL after the grace period); "kill" kills it at once. The end of the input or a new
parent process means that the supervisor is dead, and drains too. At the end the guard kills the rest of tritonserver's
process group, removes its shared-memory files and exits with tritonserver's code. It runs without site-packages.
"""

import contextlib
import ctypes
import glob
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TICK = 0.1  # seconds


def prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def read_order() -> dict:
    with open(0, "rb", buffering=0, closefd=False) as orders:  # unbuffered: what follows the line is for `_listen`
        line = orders.readline()
    if not line.endswith(b"\n"):
        sys.exit(0)  # the supervisor died first: there is nothing to guard
    return json.loads(line)


class Guard:
    def __init__(self, order: dict) -> None:
        self.order = order
        self.parent = os.getppid()
        self.listening = True
        self.abandoned = False
        self.deadline: float | None = None
        self.signalled = False

    def run(self) -> int:
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # become the parent of orphaned backend processes, to reap them
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        self.child = subprocess.Popen(
            self.order["command"],
            env={**os.environ, **self.order["environment"]},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=self._prepare,
        )
        while self.child.poll() is None:
            self._listen()
            if self.signalled or (os.getppid() != self.parent and not self.abandoned):
                self.abandoned |= not self.signalled
                self.signalled = False
                self._drain()
            if self.deadline is not None and time.monotonic() > self.deadline:
                self.child.kill()
        self._clean_up()
        code = self.child.returncode
        return code if code >= 0 else 128 - code

    def _prepare(self) -> None:
        """In the child, before it becomes tritonserver: die if the guard dies, and give threads larger stacks."""
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_STACK, tuple(self.order["stack"]))

    def _on_signal(self, number: int, frame: object) -> None:
        self.signalled = True

    def _listen(self) -> None:
        if not self.listening:
            time.sleep(TICK)
            return
        ready, _, _ = select.select([0], [], [], TICK)
        if not ready:
            return
        words = os.read(0, 64)
        if not words:
            self.listening = False
            self.abandoned = True
        if b"kill" in words:
            self.child.kill()
        elif b"stop" in words or not words:
            self._drain()

    def _drain(self) -> None:
        if self.deadline is None:
            self.deadline = time.monotonic() + self.order["grace"]
            self.child.terminate()

    def _clean_up(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            try:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    time.sleep(TICK / 5)
            except ChildProcessError:
                break
        for path in glob.glob(glob.escape(os.path.join("/dev/shm", self.order["shm_prefix"])) + "*"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        if self.abandoned:
            shutil.rmtree(self.order["runtime"], ignore_errors=True)


if __name__ == "__main__":
    sys.exit(Guard(read_order()).run())
