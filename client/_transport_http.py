"""KServe v2 over HTTP/1.1 with the standard library: a pool of kept-alive connections, safe from every thread.

tritonclient's HTTP client is bound to gevent: not thread-safe, and no deadline for the whole of a request.
"""

import contextlib
import http.client
import json
import struct
import time
from urllib.parse import quote

from client._connection import Connection
from client._errors import ClassifierError, InvalidImageError, ProtocolError, error_from_status, shorten
from client._transport import INPUT, OUTPUT, queue_timeout

GRPC_STATUS = {  # HTTP's status as gRPC's, so that both protocols raise the same errors
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class HttpTransport:
    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._idle: list[Connection] = []  # append and pop are atomic, as are the set's add and discard
        self._busy: set[Connection] = set()
        self._closed = False

    def infer(self, model: str, image: bytes, top: int, timeout: float) -> list[str]:
        tensor = struct.pack("<I", len(image)) + image
        description = {
            "inputs": [
                {
                    "name": INPUT,
                    "shape": [1, 1],
                    "datatype": "BYTES",
                    "parameters": {"binary_data_size": len(tensor)},
                }
            ],
            "outputs": [{"name": OUTPUT, "parameters": {"classification": top, "binary_data": False}}],
            "parameters": {"timeout": queue_timeout(timeout)},
        }
        header = json.dumps(description).encode()
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(header) + len(tensor)),
            "Inference-Header-Content-Length": str(len(header)),
        }
        path = f"/v2/models/{quote(model, safe='')}/infer"
        try:
            status, answer = self._send(path, headers, [header, tensor], time.monotonic() + timeout)
        except TimeoutError as error:
            raise self._error("DEADLINE_EXCEEDED", "", model, timeout) from error
        except (OSError, http.client.IncompleteRead, UnicodeError) as error:  # UnicodeError: a host that is no name
            raise self._error("UNAVAILABLE", str(error), model, timeout) from error
        except http.client.HTTPException as error:
            raise ProtocolError(
                f"this address does not speak HTTP ({shorten(repr(error), 80)}): "
                f"use the HTTP port, or protocol grpc [{self.url}]"
            ) from error
        if status != 200:
            raise self._refusal(status, answer, model, timeout)
        try:
            return [str(entry) for entry in json.loads(answer.decode(errors="replace"))["outputs"][0]["data"]]
        except (ValueError, LookupError, TypeError):
            raise ProtocolError(f"the answer holds no {OUTPUT}: check the model [{model} at {self.url}]") from None

    def close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        for connection in tuple(self._busy):
            connection.abort()

    def _send(self, path: str, headers: dict[str, str], body: list[bytes], deadline: float) -> tuple[int, bytes]:
        try:
            connection = self._idle.pop()
        except IndexError:
            pass
        else:
            try:
                return self._exchange(connection, path, headers, body, deadline)
            except ConnectionError:
                if self._closed:
                    raise
                # closed by the server while it lay idle; an inference may safely be sent again
        return self._exchange(Connection(self._host, self._port), path, headers, body, deadline)

    def _exchange(
        self, connection: Connection, path: str, headers: dict[str, str], body: list[bytes], deadline: float
    ) -> tuple[int, bytes]:
        connection.deadline = deadline
        self._busy.add(connection)
        try:
            if connection.sock is None:
                connection.connect()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the answer may be there already
                connection.request("POST", path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        except BaseException:
            connection.close()
            raise
        finally:
            self._busy.discard(connection)
        self._idle.append(connection)  # where the server has closed it, it connects again
        if self._closed:
            self.close()
        return response.status, answer

    def _refusal(self, status: int, answer: bytes, model: str, timeout: float) -> ClassifierError:
        try:
            details = str(json.loads(answer)["error"])
        except (ValueError, LookupError, TypeError):
            details = shorten(answer.decode(errors="replace"))
        if status == 413:
            return InvalidImageError(f"the server takes no request that large: send a smaller file [{self.url}]")
        return self._error(GRPC_STATUS.get(status, f"HTTP {status}"), details, model, timeout)

    def _error(self, status: str, details: str, model: str, timeout: float) -> ClassifierError:
        return error_from_status(status, details, url=self.url, model=model, timeout=timeout)
