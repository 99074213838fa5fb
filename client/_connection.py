"""One kept-alive HTTP connection with a deadline for the whole of a request."""

import contextlib
import http.client
import io
import queue
import select
import socket
import ssl
import threading
import time
from typing import Any

IDLE_SECONDS = 15.0  # as in aiohttp; a firewall may silently drop a connection that is idle for minutes


class Connection(http.client.HTTPConnection):
    """A connection with a `deadline` (monotonic seconds) for a whole request; `http.client`'s timeout is per read.

    With `context` it is encrypted. If connecting takes more than `connect_timeout` seconds it raises `ConnectionError`,
    not `TimeoutError`, which is for the deadline. `made`: it was connected, so a failure means that it broke.
    """

    deadline: float

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None, connect_timeout: float | None) -> None:
        super().__init__(host, port)
        self._context, self._connect_timeout = context, connect_timeout
        self._looked_up: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()
        self._aborted = False
        self.idle_since = 0.0  # monotonic seconds
        self.made = False

    def is_stale(self) -> bool:
        """Whether the server has closed it while it was idle (end-of-file can be read), or may have."""
        if self.sock is None:  # it will connect again
            return False
        if time.monotonic() - self.idle_since > IDLE_SECONDS:
            return True
        poll = select.poll()  # not select: a process may have more than 1024 files open
        poll.register(self.sock.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def connect(self) -> None:
        self.made = False
        seconds = self.seconds_left()
        if self._connect_timeout is not None:
            seconds = min(seconds, self._connect_timeout)
        until = time.monotonic() + seconds
        try:
            self._reach(until)
            if self._context is not None:
                self.sock.settimeout(_seconds_until(until))
                self.sock = self._context.wrap_socket(
                    self.sock, server_hostname=self.host, do_handshake_on_connect=False
                )
                self.sock.do_handshake()
        except TimeoutError:
            self.close()
            self.seconds_left()  # raises TimeoutError if it was the deadline
            raise ConnectionError(f"not connected within {seconds:g} s") from None
        except BaseException:
            self.close()
            raise
        self.sock = _DeadlineSocket(self.sock, self)
        self.made = True

    def _reach(self, until: float) -> None:
        """Connect to the first of the host's addresses that accepts; each gets its share of the remaining time."""
        found = self._look_up(until)
        for tried, (family, kind, protocol, _, address) in enumerate(found):
            self.sock: Any = socket.socket(family, kind, protocol)  # set before it connects, for `abort`
            try:
                self.sock.settimeout(_seconds_until(until) / (len(found) - tried))
                self.sock.connect(address)
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return
            except OSError as error:
                self.sock.close()
                last = error
                if self._aborted:
                    break
        raise last

    def _look_up(self, until: float) -> list[Any]:
        """Resolve the host. `socket.getaddrinfo` has no timeout: a thread calls it, and is abandoned if it is late."""
        with contextlib.suppress(socket.gaierror):
            return socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)

        def ask() -> None:
            try:
                self._looked_up.put(socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM))
            except Exception as error:
                self._looked_up.put(error)

        threading.Thread(target=ask, name=f"look up {self.host}", daemon=True).start()
        try:
            found = self._looked_up.get(timeout=_seconds_until(until))
        except queue.Empty:
            raise TimeoutError("timed out") from None
        if isinstance(found, Exception):
            raise found
        return found

    def abort(self) -> None:
        """End the request from another thread, whether it resolves the name, connects or waits for the answer."""
        self._aborted = True
        self._looked_up.put(ConnectionError("closed"))
        sock = self.sock
        if sock is not None:
            with contextlib.suppress(OSError):  # closed meanwhile
                sock.shutdown(socket.SHUT_RDWR)

    def seconds_left(self) -> float:
        return _seconds_until(self.deadline)


def _seconds_until(moment: float) -> float:
    left = moment - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left


class _DeadlineSocket:
    def __init__(self, sock: Any, connection: Connection) -> None:
        self._sock, self._connection = sock, connection
        self.close, self.shutdown, self.fileno = sock.close, sock.shutdown, sock.fileno

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._connection.seconds_left())
        try:
            self._sock.sendall(data)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:  # TLS's name for a broken pipe
            raise BrokenPipeError(str(error)) from error

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
