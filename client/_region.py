"""A region of POSIX shared memory, as tritonserver opens it by its name."""

import contextlib
import mmap
import os
import re
import secrets
import struct
from collections.abc import Iterable

FOLDER = "/dev/shm"  # where Linux, on which tritonserver runs, keeps it
PROCESSES = "/proc"
_NAME = re.compile(r"widefield-(?P<namespace>\d+)-(?P<process>\d+)-[0-9a-f]{32}")


class Region:
    """Memory that a server reads. Anyone who knows its name can have that server read it, so the name is random."""

    def __init__(self, size: int) -> None:
        """Create the region. Raises `OSError` if memory is short: half of `FOLDER` stays free for the server itself."""
        self.name, self.size = f"widefield-{_namespace()}-{os.getpid()}-{secrets.token_hex(16)}", size
        space = os.statvfs(FOLDER)
        if space.f_bavail * space.f_frsize - size < space.f_blocks * space.f_frsize / 2:
            raise OSError(f"{FOLDER} is half full")
        self._path = os.path.join(FOLDER, self.name)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(file, 0, size)  # else full memory would mean SIGBUS at the first write
            self._memory = mmap.mmap(file, size)
        except BaseException:
            self.hide()
            raise
        finally:
            os.close(file)

    def write(self, image: bytes) -> None:
        """Write `image` as an element of a string tensor: its length, then its bytes."""
        self._memory[:4] = struct.pack("<I", len(image))
        self._memory[4 : 4 + len(image)] = image

    def hide(self) -> None:
        """Remove the name: processes that have the region open keep it, and it is freed with the last of them."""
        os.unlink(self._path)

    def close(self) -> None:
        self._memory.close()


def left_behind(names: Iterable[str]) -> list[str]:
    """Return those of `names` whose clients have ended; only clients in this process's PID namespace are known."""
    found = []
    for name in names:
        made = _NAME.fullmatch(name)
        if made and made["namespace"] == _namespace() and not os.path.exists(f"{PROCESSES}/{made['process']}"):
            found.append(name)
    return found


def remove_left_behind() -> None:
    """Remove the names left by clients that were killed while they registered a region."""
    for name in left_behind(os.listdir(FOLDER)):
        with contextlib.suppress(OSError):  # another client may be quicker
            os.unlink(os.path.join(FOLDER, name))


def _namespace() -> str:
    """The id of the PID namespace: a container has its own."""
    return str(os.stat(f"{PROCESSES}/self/ns/pid").st_ino)
