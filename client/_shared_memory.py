"""Images that a server on this host reads out of shared memory: a request then carries a region's name and no bytes."""

import contextlib
import mmap
import os
import secrets
import struct
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, TypeAlias

from client._errors import (
    ClassifierError,
    DeadlineExceededError,
    InferenceError,
    InvalidImageError,
    QueueFullError,
    RegionUnknownError,
)
from client._request import Answer, Request

FOLDER = "/dev/shm"  # where POSIX shared memory lies on Linux, the system of tritonserver
SMALLEST, LARGEST = 1 << 20, 1 << 25  # bytes of a region; the server takes no image of more than 20 MB
MOST = 1 << 28  # bytes of all regions of one server
CLOSE_SECONDS = 1.0
ANSWERED = (InvalidImageError, QueueFullError)  # the server has done with the image

Ask: TypeAlias = Callable[[Any], Any]
"""What to ask of the transport that carries the request; asyncio awaits what it returns."""


class Region:
    """Memory to show to a server. Who knows its name may have that server read it, so it cannot be guessed."""

    def __init__(self, size: int) -> None:
        """Raises `OSError` where there is no memory for it."""
        self.name, self.size = f"widefield-{secrets.token_hex(16)}", size
        self._path = os.path.join(FOLDER, self.name)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(file, 0, size)  # else a full /dev/shm would be a signal at the first write
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
        """From new eyes; who has it open keeps it. So nothing is left in /dev/shm, however this process ends."""
        os.unlink(self._path)

    def close(self) -> None:
        self._memory.close()


class SharedMemory:
    """The regions of one server, one for each request in flight. What the steps yield, the transport is asked."""

    def __init__(self, token: str) -> None:
        """Raises `ValueError`."""
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError("the shared-memory token is empty, or no token: give the server's, as it stands there")
        if not os.path.isdir(FOLDER):
            raise ValueError(f"this system has no {FOLDER}: leave the shared-memory token out")
        self._token = token
        self._lock = threading.Lock()
        self._idle: list[Region] = []
        self._busy: set[Region] = set()
        self._leaving: set[Region] = set()  # given up here; the server may read them still
        self._bytes = 0

    def infer(self, request: Request) -> Generator[Ask, Any, Answer]:
        """Without memory for a region the image goes in the message, as without a token."""
        deadline = time.monotonic() + request.timeout
        needed = len(request.image) + 4
        if needed > LARGEST:
            return (yield lambda transport: transport.infer(request))
        region = self._take(needed)
        if region is not None:
            with contextlib.suppress(RegionUnknownError):  # the server was restarted
                return (yield from self._send(region, request, deadline))
        region = yield from self._add(max(SMALLEST, 1 << (needed - 1).bit_length()), deadline)
        if region is None:
            return (yield lambda transport: transport.infer(request))
        return (yield from self._send(region, request, deadline))

    def close(self) -> Generator[Ask, Any, None]:
        """The server drops what it reads of the regions; those of requests in flight once they have ended."""
        deadline = time.monotonic() + CLOSE_SECONDS
        with self._lock:
            regions = [*self._idle, *self._busy, *self._leaving]
            self._idle.clear()
            self._leaving.clear()
        for region in regions:
            with contextlib.suppress(ClassifierError):
                yield self._share(region, None, deadline)

    def _send(self, region: Region, request: Request, deadline: float) -> Generator[Ask, Any, Answer]:
        region.write(request.image)
        shared = replace(request, region=region.name, timeout=_seconds_until(deadline))
        try:
            answer = yield lambda transport: transport.infer(shared)
        except RegionUnknownError:
            self._drop(region)
            raise
        except ANSWERED:
            self._give_back(region)
            raise
        except BaseException:  # the server may yet read it: the next image must not be written there
            self._leave(region)
            raise
        self._give_back(region)
        return answer

    def _add(self, size: int, deadline: float) -> Generator[Ask, Any, Region | None]:
        """One more that the server knows, for this request; None where there is no memory for it."""
        with self._lock:
            leaving = tuple(self._leaving)
        for left in leaving:
            with contextlib.suppress(InferenceError):  # it reads it still
                yield self._share(left, None, deadline)
                self._drop(left)
        region = self._make(size)
        if region is None:
            return None
        try:
            yield self._share(region, size, deadline)
        except ClassifierError as error:
            (self._leave if isinstance(error, DeadlineExceededError) else self._drop)(region)
            raise
        except BaseException:
            self._leave(region)
            raise
        finally:
            region.hide()
        return region

    def _share(self, region: Region, size: int | None, deadline: float) -> Ask:
        return lambda transport: transport.share(region.name, size, self._token, _seconds_until(deadline))

    def _make(self, size: int) -> Region | None:
        with self._lock:
            if self._bytes + size > MOST:
                return None
            try:
                region = Region(size)
            except OSError:
                return None
            self._bytes += size
            self._busy.add(region)
        return region

    def _take(self, needed: int) -> Region | None:
        """An idle one that is large enough; where all are too small, one of them makes room for a larger."""
        with self._lock:
            for region in reversed(self._idle):
                if region.size >= needed:
                    self._idle.remove(region)
                    self._busy.add(region)
                    return region
            if self._idle:
                self._leaving.add(self._idle.pop())
        return None

    def _give_back(self, region: Region) -> None:
        with self._lock:
            self._busy.discard(region)
            self._idle.append(region)

    def _leave(self, region: Region) -> None:
        with self._lock:
            self._busy.discard(region)
            self._leaving.add(region)

    def _drop(self, region: Region) -> None:
        with self._lock:
            if region in self._busy or region in self._leaving:  # another thread may have dropped it
                self._bytes -= region.size
            self._busy.discard(region)
            self._leaving.discard(region)
        region.close()


def _seconds_until(deadline: float) -> float:
    return max(1e-3, deadline - time.monotonic())
