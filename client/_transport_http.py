"""KServe v2 over HTTP/1.1 with the standard library: a thread-safe pool of kept-alive connections.

tritonclient's HTTP client is bound to gevent: it is not thread-safe, and has no deadline for the whole of a request.
"""

import contextlib
import http.client
import time
from collections.abc import Sequence

from client import _wire_http as wire
from client._address import Address
from client._connection import Connection
from client._errors import CUT_OFF, error_from_status
from client._fork import forget_when_forked
from client._request import Answer, Request, Share
from client._status import ServerStatus
from client._tls import ssl_context

LARGEST_ANSWER = 1 << 30  # bytes


class HttpTransport:
    def __init__(self, address: Address) -> None:
        self._address, self.url = address, address.url("http")
        self._context = None if address.tls is None else ssl_context(address.tls)
        self._closed = False
        self.forget()
        forget_when_forked(self)

    def forget(self) -> None:
        """Start without connections: two processes on one connection would get each other's answers."""
        self._idle: list[Connection] = []  # append and pop are atomic, as are the set's add and discard
        self._busy: set[Connection] = set()

    def infer(self, request: Request) -> Answer:
        answer = self._ask("POST", *wire.encode_request(request), request.model, request.timeout)
        return wire.decode_answer(*answer, request, self.url)

    def share(self, share: Share) -> list[str]:
        """See `GrpcTransport.share`."""
        answer = self._ask(*wire.encode_share(share), "shared memory", share.timeout)
        return wire.decode_share(*answer, share, self.url)

    def status(self, timeout: float) -> ServerStatus:
        deadline = time.monotonic() + timeout
        answers = [
            self._ask("GET", path, {}, [], "status", deadline - time.monotonic())
            for path in (wire.METADATA, wire.READY, wire.STATISTICS)
        ]
        return wire.decode_status(answers, self.url, timeout)

    def close(self) -> None:
        self._closed = True
        with contextlib.suppress(IndexError):  # a request or another close may take the last one
            while True:
                self._idle.pop().close()
        for connection in tuple(self._busy):
            connection.abort()

    def _ask(
        self, method: str, path: str, headers: dict[str, str], body: Sequence[bytes], model: str, timeout: float
    ) -> tuple[int, bytes]:
        """Return the HTTP status and the body. Raises a `ClassifierError` if no answer comes."""
        path, headers = self._address.prefix + path, self._address.headers() | headers
        connection = self._take()
        connection.deadline = time.monotonic() + timeout
        try:
            return self._exchange(connection, method, path, headers, body)
        except TimeoutError as error:
            raise error_from_status("DEADLINE_EXCEEDED", "", url=self.url, model=model, timeout=timeout) from error
        except (OSError, http.client.IncompleteRead, UnicodeError) as error:  # UnicodeError: not a host name
            status = CUT_OFF if connection.made else "UNAVAILABLE"
            raise error_from_status(status, str(error), url=self.url, model=model, timeout=timeout) from error
        except http.client.HTTPException as error:
            raise wire.other_protocol(error, self.url) from error

    def _exchange(
        self, connection: Connection, method: str, path: str, headers: dict[str, str], body: Sequence[bytes]
    ) -> tuple[int, bytes]:
        self._busy.add(connection)
        try:
            if connection.sock is None:
                connection.connect()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the answer may be there already
                connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            if (response.length or 0) > LARGEST_ANSWER:  # it would be allocated at once
                raise http.client.HTTPException(f"an answer of {response.length} bytes")
            answer = response.read()
        except BaseException:
            connection.close()
            raise
        finally:
            self._busy.discard(connection)
        connection.idle_since = time.monotonic()
        self._idle.append(connection)  # if the server has closed it, it connects again
        if self._closed:
            self.close()
        return response.status, answer

    def _take(self) -> Connection:
        """Take an idle connection that is alive, else a new one."""
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if not connection.is_stale():
                    return connection
                connection.close()
        address = self._address
        return Connection(address.host, address.port, self._context, address.connect_timeout)
