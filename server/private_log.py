"""tritonserver's log if no log file was named: truncated when it is long, and copied to standard error on request."""

import contextlib
import os
import sys
import threading
from pathlib import Path

LIMIT = 16 * 1024 * 1024  # bytes
TICK = 0.2  # seconds


class PrivateLog:
    """Follows the file at `path`, to which other processes append (O_APPEND), until `close`."""

    def __init__(self, path: Path, forward: bool) -> None:
        self.path, self.forward = path, forward
        self._read = 0  # bytes that were copied
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tritonserver log", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copy the remaining lines and stop."""
        self._closing.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._closing.wait(TICK):
            self._look()
        self._look()

    def _look(self) -> None:
        with contextlib.suppress(OSError), self.path.open("rb") as file:  # the file does not exist yet
            if self.forward:
                file.seek(self._read)
                self._pass_on(file.read())
            if file.seek(0, os.SEEK_END) > LIMIT:
                os.truncate(self.path, 0)  # loses what is written at this moment
                self._read = 0

    def _pass_on(self, text: bytes) -> None:
        if not self._closing.is_set():
            text = text[: text.rfind(b"\n") + 1]  # whole lines, since others write to standard error too
        self._read += len(text)
        with contextlib.suppress(OSError, ValueError):  # the terminal was closed
            sys.stderr.write(text.decode(errors="replace"))
            sys.stderr.flush()
