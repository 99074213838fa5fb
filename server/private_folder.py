"""The folder that a server has to itself while it lives."""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
import weakref
from pathlib import Path

PREFIX = "widefield-server-"
NAME = re.compile(rf"{PREFIX}[a-z0-9_]{{8}}")  # as mkdtemp makes it
MARK = "unload.sh"  # the first file in it
NEW_SECONDS = 60.0  # one that is younger may be about to be locked


class PrivateFolder:
    """Locked until `remove`: so long systemd-tmpfiles, which cleans /tmp by age, passes it over, and the next start."""

    def __init__(self, base: str) -> None:
        remove_left_behind(base)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base)).resolve()
        handle = os.open(self.path, os.O_RDONLY)
        self._unlock = weakref.finalize(self, os.close, handle)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_SH)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._unlock()


def remove_left_behind(base: str) -> None:
    """This user's, of servers that were killed together with their guards."""
    for path in Path(base).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # locked, or another start was quicker
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                found = os.fstat(handle)
                ours = NAME.fullmatch(path.name) and found.st_uid == os.geteuid() and (path / MARK).is_file()
                if ours and time.time() - found.st_mtime > NEW_SECONDS:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            finally:
                os.close(handle)
