"""Images that a server on this host reads out of shared memory: a request then carries a region's name and no bytes."""

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
ROOMY = 4  # a region so many times as large as needed is kept for larger images
TIDY_SECONDS = 0.25  # for what the request itself does not need
CLOSE_SECONDS = 0.5
CLOSE_PAUSE = 0.02
ANSWERED = (InvalidImageError, QueueFullError)  # the server has done with the image

Steps: TypeAlias = "Generator[Request | Share | Pause, Any, Any]"
"""What to send to the server, whose answer or error comes back, or how long to wait."""


class SharedMemory:
    """The regions of one server, one for each request in flight. No input or output: the transports take the steps."""

    def __init__(self, token: str) -> None:
        """Raises `ValueError`."""
        if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ValueError("the shared-memory token is empty or malformed: give the server's own")
        if not os.path.isdir(FOLDER):
            raise ValueError(f"this system has no {FOLDER}: leave the shared-memory token out")
        self._token = token
        self.forget()
        forget_when_forked(self)

    def forget(self) -> None:
        """Two processes in one region would be answered for each other's images."""
        self._lock = threading.Lock()
        self._idle: list[Region] = []
        self._leaving: deque[Region] = deque()  # given up here; the server has them still, and may read them
        self._bytes = 0  # of these, and of those in use
        self._met = False  # whether this server was asked for what is left of clients that have ended

    def infer(self, request: Request) -> Generator[Any, Any, Answer]:
        """Where no memory is left the image goes in the message, as without a token."""
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
        """Takes the regions back, those that the server still reads once it has done, within `CLOSE_SECONDS`."""
        deadline = time.monotonic() + CLOSE_SECONDS
        while self._bytes and time.monotonic() < deadline:
            with self._lock:
                self._leaving.extend(self._idle)
                self._idle.clear()
                count = len(self._leaving)
            try:
                for _ in range(count):
                    yield from self._take_back(deadline)
            except ClassifierError:  # it does not answer, or is gone with all that it had
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
        except BaseException:  # the server may yet read it: the next image must not be written there
            self._leaving.append(region)
            raise
        self._give_back(region)
        return answer

    def _add(self, size: int, deadline: float) -> Generator[Any, Any, Region | None]:
        """One more that the server knows, for this request; None where there is no memory for it."""
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
            with contextlib.suppress(RegionKnownError):  # it was sent twice, over a connection that broke
                yield self._share("register", region.name, _left(deadline), size)
        except BaseException as error:
            refused = isinstance(error, ClassifierError) and not isinstance(error, DeadlineExceededError)
            (self._drop if refused else self._leaving.append)(region)
            raise
        finally:
            region.hide()
        return region

    def _meet(self, deadline: float) -> Steps:
        """Takes back what clients on this host left with the server by ending without `close`."""
        remove_left_behind()
        for name in left_behind((yield self._share("status", "", _left(deadline)))):
            with contextlib.suppress(InferenceError):  # it reads it still
                yield self._share("unregister", name, _left(deadline))
        self._met = True

    def _tidy(self, deadline: float) -> Steps:
        """One region at most, whatever the server says."""
        with contextlib.suppress(ClassifierError):
            yield from self._take_back(min(deadline, time.monotonic() + TIDY_SECONDS))

    def _take_back(self, deadline: float) -> Steps:
        """The one that left first. It stays in the last place where the server reads it still."""
        try:
            region = self._leaving.popleft()  # nobody else asks for it meanwhile
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
        """The smallest idle one that is large enough."""
        with self._lock:
            fitting = [each for each in self._idle if size <= each.size <= ROOMY * size]
            if not fitting:
                return None
            region = min(fitting, key=lambda each: each.size)
            self._idle.remove(region)
            return region

    def _evict(self) -> bool:
        """Of the idle ones the largest; False where there is none."""
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
    """Seconds; never 0, which some take for no limit."""
    return max(1e-3, deadline - time.monotonic())
