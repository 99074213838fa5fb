"""Real servers as an operator starts them, `python -m server`, each with its own small /dev/shm and disk."""

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.resilience.footprint import SHARED_MEMORY, Footprint, backends_of, tritonserver_of
from server.canary import CanaryError, classify_canary

START_SECONDS = 180.0
SHM_MIB = 64
DISK_MIB = 64
# Each server has its own mount namespace, so that a full disk affects no other.
CONFINED = 'mount -t tmpfs -o size={shm}m tmpfs /dev/shm && mount -t tmpfs -o size={disk}m tmpfs "$TMPDIR" && exec "$@"'


def unshare() -> list[str]:
    """The command that gives a process its own mounts. Raises `OSError` if this machine does not allow it."""
    command = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None:
        raise OSError("unshare is missing: apt-get install util-linux")
    tried = subprocess.run(
        [*command, "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        raise OSError(f"this machine allows no mount namespace ({tried.stderr.strip()}): run as root")
    return command


class Member:
    """One supervised server. `folder` holds its log and, in its own namespace, its disk."""

    def __init__(self, repository: Path, folder: Path, *options: str, confined: bool = False) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.command = [sys.executable, "-m", "server", "--model-repository", str(repository)]
        self.command += ["--start-timeout", str(START_SECONDS), *options]
        if confined:
            self.command = [*unshare(), "sh", "-c", CONFINED.format(shm=SHM_MIB, disk=DISK_MIB), "sh", *self.command]
        self.events: list[str] = []
        self._start("0", "0")

    def start_again(self) -> None:
        """Start again after `stop`, on the same ports; returns when it is ready."""
        self._start(self.http.rpartition(":")[2], self.grpc.rpartition(":")[2])
        self.await_ready()

    def _start(self, http_port: str, grpc_port: str) -> None:
        command = [*self.command, "--http-port", http_port, "--grpc-port", grpc_port, "--metrics-port", "0"]
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "TMPDIR": str(self.temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._read_events, daemon=True).start()

    def await_ready(self) -> None:
        assert self.process.stdout is not None  # made with PIPE
        lines = [self.process.stdout.readline() for _ in range(4)]
        if not lines[3]:
            raise RuntimeError(f"the server did not start: {' '.join(self.events[-3:])}")
        self.http, self.grpc = lines[0].split()[1].removeprefix("http://"), lines[1].split()[1]
        self.names = [path.name for path in self.disk.glob("widefield-*")]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def restarts(self) -> int:
        return sum("; restarting" in line for line in self.events)

    def tritonserver(self) -> psutil.Process:
        found = tritonserver_of(self.pid)
        if found is None:
            raise RuntimeError("there is no tritonserver at the moment")
        return found

    def backend(self) -> psutil.Process:
        return backends_of(self.pid)[0]

    @property
    def shared_memory(self) -> Path:
        return self._seen(SHARED_MEMORY)

    @property
    def disk(self) -> Path:
        return self._seen(self.temporary)

    def answers(self, seconds: float = 1.0) -> bool:
        try:
            classify_canary(self.http, "classifier", seconds)
        except CanaryError:
            return False
        return True

    def footprint(self) -> Footprint:
        """The footprint of the supervisor and its child processes."""
        return Footprint.of(self.pid, self.names, self.shared_memory, self.disk)

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if that does not end it within a minute."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _seen(self, path: Path) -> Path:
        """`path` as the server sees it, in its own mount namespace."""
        return Path("/proc", str(self.pid), "root", path.relative_to("/"))

    def _read_events(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.events.append(line.rstrip())


@contextlib.contextmanager
def fleet(repository: Path, folder: Path, count: int, *options: str, confined: bool = False) -> Iterator[list[Member]]:
    """Start `count` servers; yields them when all are ready, and stops them at the end."""
    members: list[Member] = []
    try:
        for number in range(count):
            members.append(Member(repository, folder / f"server-{number + 1}", *options, confined=confined))
        for member in members:
            member.await_ready()
        yield members
    finally:
        for member in members:
            member.stop()
