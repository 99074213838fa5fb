"""The folder in /tmp that a process has to itself while it lives: a server's, or a copy of a repository to try."""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path

PREFIX = "widefield-server-"
MARK = "unload.sh"  # the first file in a server's
NEW_SECONDS = 60.0  # one that is younger may be about to be locked


class PrivateFolder:
    """Locked until `remove`, so that systemd-tmpfiles, which cleans /tmp by age, and the next start pass it over.

    `mark`: what its owner creates in it first. The next start removes an abandoned folder only if it holds this.
    """

    def __init__(self, base: str, prefix: str = PREFIX, mark: str = MARK) -> None:
        remove_left_behind(base, prefix, mark)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=base)).resolve()
        self._unlock = hold(self, self.path)

    def remove(self) -> None:
        try:
            shutil.rmtree(self.path, ignore_errors=True)
        finally:  # Ctrl-C meanwhile: half of it, without its mark, nobody would ever remove
            shutil.rmtree(self.path, ignore_errors=True)
            self._unlock()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()


def hold(owner: object, folder: Path) -> Callable[[], object]:
    """A shared lock, which shows that the folder is in use, until `owner` goes or what is returned is called."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.suppress(OSError):  # a file system without locks, or a build that looks whether there is one
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return weakref.finalize(owner, os.close, handle)


def remove_left_behind(base: str, prefix: str, mark: str) -> None:
    """This user's, of processes that were killed together with what would have cleaned up after them."""
    name = re.compile(rf"{prefix}[a-z0-9_]{{8}}")  # as mkdtemp makes it
    for path in Path(base).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # locked, or another start was quicker
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                found = os.fstat(handle)
                ours = name.fullmatch(path.name) and found.st_uid == os.geteuid() and (path / mark).exists()
                if ours and time.time() - found.st_mtime > NEW_SECONDS:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(handle)
