"""Temporary folders that belong to one process: a server's, or a copy of a repository for a trial."""

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
MARK = "unload.sh"  # the first file in a server's folder
NEW_SECONDS = 60.0  # a younger folder may not be locked yet


class PrivateFolder:
    """A temporary folder, locked until `remove`, so that neither systemd-tmpfiles nor the next start removes it.

    `mark`: the file that its owner creates in it first. The next start removes an abandoned folder only if it has this
    file.
    """

    def __init__(self, base: str, prefix: str = PREFIX, mark: str = MARK) -> None:
        remove_left_behind(base, prefix, mark)
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=base)).resolve()
        self._unlock = hold(self, self.path)

    def remove(self) -> None:
        try:
            shutil.rmtree(self.path, ignore_errors=True)
        finally:  # after Ctrl-C: a rest without the mark would never be removed
            shutil.rmtree(self.path, ignore_errors=True)
            self._unlock()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()


def hold(owner: object, folder: Path) -> Callable[[], object]:
    """Lock the folder (shared) until `owner` is collected or the returned function is called: it is in use."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.suppress(OSError):  # a file system without locks, or a build that tests the lock
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return weakref.finalize(owner, os.close, handle)


def remove_left_behind(base: str, prefix: str, mark: str) -> None:
    """Remove this user's folders left by processes that were killed together with their guards."""
    name = re.compile(rf"{prefix}[a-z0-9_]{{8}}")  # mkdtemp's pattern
    for path in Path(base).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # locked, or removed by another start
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                found = os.fstat(handle)
                ours = name.fullmatch(path.name) and found.st_uid == os.geteuid() and (path / mark).exists()
                if ours and time.time() - found.st_mtime > NEW_SECONDS:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(handle)
