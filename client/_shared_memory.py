"""Pass images to a server on this host in shared memory: a request then carries a region's name and no bytes."""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Generator
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from client._attempts import Pause
from client._errors import (
    ClassifierError,
    DeadlineExceededError,
    InferenceError,
    InvalidImageError,
    ProtocolError,
    QueueFullError,
    RegionKnownError,
    RegionUnknownError,
)
from client._fork import forget_when_forked
from client._region import FOLDER, Region, left_behind, remove_left_behind
from client._request import Answer, Request, Share

SMALLEST, LARGEST = 1 << 20, 1 << 25  # bytes of a region; the server takes no image of more than 20 MB
MOST = 1 << 28  # bytes of all regions of one server
ROOMY = 4  # a region more than so many times as large as needed is kept for larger images
TIDY_SECONDS = 0.25  # for what the request itself does not need
CLOSE_SECONDS = 0.5
CLOSE_PAUSE = 0.02
ANSWERED = (InvalidImageError, QueueFullError)  # the server no longer reads the image

Steps: TypeAlias = "Generator[Request | Share | Pause, Any, Any]"
"""It yields what to send to the server, and gets its answer or error back, or how long to wait."""


class SharedMemory:
    """The regions of one server, one for each request in flight. It does no I/O: the transports do the steps."""

    def __init__(self, token: str) -> None:
        """Raise `ValueError` for a malformed token, or without `FOLDER`."""
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError("the shared-memory token is empty or malformed: give the server's own")
        if not os.path.isdir(FOLDER):
            raise ValueError(f"this system has no {FOLDER}: leave the shared-memory token out")
        self._token = token
        self.forget()
        forget_when_forked(self)

    def forget(self) -> None:
        """Start without regions: two processes in one region would get answers for each other's images."""
        self._lock = threading.Lock()
        self._idle: list[Region] = []
        self._leaving: deque[Region] = deque()  # unused here, but still registered: the server may read them
        self._bytes = 0  # of all regions, those in use too
        self._met = False  # whether the regions of clients that have ended were unregistered

    def infer(self, request: Request) -> Generator[Any, Any, Answer]:
        """Send the image in a region; if it is too large or no memory is left, in the message."""
        deadline = time.monotonic() + request.timeout
        needed = 4 + len(request.image)
        if needed > LARGEST:
            return (yield request)
        size = max(SMALLEST, 1 << (needed - 1).bit_length())
        yield from self._tidy(deadline)
        region = self._take(size)
        if region is not None:
            with contextlib.suppress(RegionUnknownError):  # the server was restarted
                return (yield from self._send(region, request, deadline))
        region = yield from self._add(size, deadline)
        if region is None:
            return (yield replace(request, timeout=_left(deadline)))
        try:
            return (yield from self._send(region, request, deadline))
        except RegionUnknownError as error:
            raise ProtocolError(error.message) from error

    def close(self) -> Steps:
        """Unregister all regions within `CLOSE_SECONDS`; one that the server still reads is tried again."""
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._bytes and time.monotonic() < deadline:
            with self._lock:
                self._leaving.extend(self._idle)
                self._idle.clear()
                count = len(self._leaving)
            try:
                for _ in range(count):
                    yield from self._take_back(deadline)
            except ClassifierError:  # the server does not answer, or is gone
                return
            if self._bytes:
                yield Pause(CLOSE_PAUSE)

    def _send(self, region: Region, request: Request, deadline: float) -> Generator[Any, Any, Answer]:
        try:
            region.write(request.image)
            answer = yield replace(request, region=region.name, timeout=_left(deadline))
        except RegionUnknownError:
            self._drop(region)
            raise
        except ANSWERED:
            self._give_back(region)
            raise
        except BaseException:  # the server may still read it: the next image must not be written there
            self._leaving.append(region)
            raise
        self._give_back(region)
        return answer

    def _add(self, size: int, deadline: float) -> Generator[Any, Any, Region | None]:
        """Register a new region for this request; return None if there is no memory for it."""
        if not self._met:
            yield from self._meet(deadline)
        while not self._reserve(size):
            if not self._evict():
                return None
            yield from self._tidy(deadline)
        try:
            region = Region(size)
        except OSError:
            self._release(size)
            return None
        try:
            with contextlib.suppress(RegionKnownError):  # sent twice, as a connection broke
                yield self._share("register", region.name, _left(deadline), size)
        except BaseException as error:
            refused = isinstance(error, ClassifierError) and not isinstance(error, DeadlineExceededError)
            (self._drop if refused else self._leaving.append)(region)
            raise
        finally:
            region.hide()
        return region

    def _meet(self, deadline: float) -> Steps:
        """Unregister the regions of clients on this host that ended without `close`."""
        remove_left_behind()
        for name in left_behind((yield self._share("status", "", _left(deadline)))):
            with contextlib.suppress(InferenceError):  # the server still reads it
                yield self._share("unregister", name, _left(deadline))
        self._met = True

    def _tidy(self, deadline: float) -> Steps:
        """Unregister one region at most; errors are ignored."""
        with contextlib.suppress(ClassifierError):
            yield from self._take_back(min(deadline, time.monotonic() + TIDY_SECONDS))

    def _take_back(self, deadline: float) -> Steps:
        """Unregister the oldest region of `_leaving`; if the server still reads it, it becomes the newest."""
        try:
            region = self._leaving.popleft()  # so that no other thread unregisters it meanwhile
        except IndexError:
            return
        try:
            yield self._share("unregister", region.name, _left(deadline))
        except InferenceError:
            self._leaving.append(region)
        except BaseException:
            self._leaving.append(region)
            raise
        else:
            self._drop(region)

    def _share(
        self, verb: Literal["register", "unregister", "status"], region: str, timeout: float, size: int = 0
    ) -> Share:
        return Share(verb, region, size, self._token, timeout)

    def _take(self, size: int) -> Region | None:
        """Take the smallest idle region that is large enough, if any."""
        with self._lock:
            fitting = [each for each in self._idle if size <= each.size <= ROOMY * size]
            if not fitting:
                return None
            region = min(fitting, key=lambda each: each.size)
            self._idle.remove(region)
            return region

    def _evict(self) -> bool:
        """Move the largest idle region to `_leaving`; return False if none is idle."""
        with self._lock:
            if not self._idle:
                return False
            region = max(self._idle, key=lambda each: each.size)
            self._idle.remove(region)
            self._leaving.appendleft(region)
            return True

    def _give_back(self, region: Region) -> None:
        with self._lock:
            self._idle.append(region)

    def _drop(self, region: Region) -> None:
        region.close()
        self._release(region.size)

    def _reserve(self, size: int) -> bool:
        with self._lock:
            if self._bytes + size > MOST:
                return False
            self._bytes += size
            return True

    def _release(self, size: int) -> None:
        with self._lock:
            self._bytes -= size


def _left(deadline: float) -> float:
    """The seconds until `deadline`, but never 0, which some calls take for no limit."""
    return max(1e-3, deadline - time.monotonic())
