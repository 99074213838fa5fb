"""A region of POSIX shared memory, as tritonserver opens it by its name."""

import contextlib
import mmap
import os
import re
import secrets
import struct
from collections.abc import Iterable

FOLDER = "/dev/shm"  # where it lies on Linux, the system of tritonserver
PROCESSES = "/proc"
_NAME = re.compile(r"widefield-(?P<namespace>\d+)-(?P<process>\d+)-[0-9a-f]{32}")


class Region:
    """Memory to show to a server. Who knows its name may have that server read it, so it cannot be guessed."""

    def __init__(self, size: int) -> None:
        """Raises `OSError` where there is no memory for it: half of what there is stays free for the server itself."""
        self.name, self.size = f"widefield-{_namespace()}-{os.getpid()}-{secrets.token_hex(16)}", size
        space = os.statvfs(FOLDER)
        if space.f_bavail * space.f_frsize - size < space.f_blocks * space.f_frsize / 2:
            raise OSError(f"{FOLDER} is half full")
        self._path = os.path.join(FOLDER, self.name)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(file, 0, size)  # else full memory would be a signal at the first write
            self._memory = mmap.mmap(file, size)
        except BaseException:
            self.hide()
            raise
        finally:
            os.close(file)

    def write(self, image: bytes) -> None:
        """As a string element: its length, then its bytes."""
        self._memory[:4] = struct.pack("<I", len(image))
        self._memory[4 : 4 + len(image)] = image

    def hide(self) -> None:
        """Takes the name away; who has it open keeps it. So it is gone with the last process that has."""
        os.unlink(self._path)

    def close(self) -> None:
        self._memory.close()


def left_behind(names: Iterable[str]) -> list[str]:
    """Those of `names` whose clients have ended, as far as their process numbers mean something here."""
    found = []
    for name in names:
        made = _NAME.fullmatch(name)
        if made and made["namespace"] == _namespace() and not os.path.exists(f"{PROCESSES}/{made['process']}"):
            found.append(name)
    return found


def remove_left_behind() -> None:
    """The names left by clients that were killed while they showed a region."""
    for name in left_behind(os.listdir(FOLDER)):
        with contextlib.suppress(OSError):  # another client's may be quicker
            os.unlink(os.path.join(FOLDER, name))


def _namespace() -> str:
    """Of process numbers: a container has its own."""
    return str(os.stat(f"{PROCESSES}/self/ns/pid").st_ino)
