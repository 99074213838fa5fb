"""One kept-alive HTTP connection with a deadline for the whole of a request."""

import contextlib
import http.client
import io
import socket
import time
from typing import Any


class Connection(http.client.HTTPConnection):
    """`http.client`'s timeout is for each read; this one's `deadline` (monotonic seconds) is for all of a request."""

    deadline: float

    def connect(self) -> None:
        self.timeout = self.seconds_left()
        super().connect()
        self.sock: Any = _DeadlineSocket(self.sock, self)

    def abort(self) -> None:
        """From another thread: whoever waits for an answer meets a closed connection."""
        sock = self.sock
        if sock is not None:
            sock.shutdown()

    def seconds_left(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


class _DeadlineSocket:
    def __init__(self, sock: Any, connection: Connection) -> None:
        self._sock, self._connection = sock, connection
        self.close = sock.close

    def shutdown(self) -> None:
        with contextlib.suppress(OSError):  # closed meanwhile
            self._sock.shutdown(socket.SHUT_RDWR)

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._connection.seconds_left())
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._sock, self._connection))


class _DeadlineReader(io.RawIOBase):
    def __init__(self, sock: Any, connection: Connection) -> None:
        self._sock, self._connection = sock, connection
        self._raw = sock.makefile("rb", buffering=0)  # keeps the socket open until it is read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._connection.seconds_left())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()
