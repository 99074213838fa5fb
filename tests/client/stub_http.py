"""A scripted HTTP server in this process."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GOOD = json.dumps({"outputs": [{"name": "probabilities", "data": ["0.9:1:cät"]}]}).encode()


class HttpStub(ThreadingHTTPServer):
    """Answers each request with `status` and `body`, or by `act`; records the requests."""

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.status, self.body = 200, GOOD
        self.act: Callable[[Handler], bool] = lambda handler: False
        self.requests: list[tuple[str, bytes]] = []
        self.pages: dict[str, tuple[int, bytes]] = {}
        self.pause = 0.0  # seconds before each of them
        self.connections = 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients hang up here on purpose


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HttpStub

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        if self.server.act(self):
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        cut = int(self.headers["Inference-Header-Content-Length"])
        self.server.requests.append((self.path, body[:cut]))
        self.image = body[cut:]
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def do_GET(self) -> None:
        status, body = self.server.pages[self.path]
        time.sleep(self.server.pause)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def hang_up(handler: Handler) -> bool:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


def close_unsaid(handler: Handler) -> bool:
    """Answers, then closes the connection as after an idle timeout."""
    handler.close_connection = True
    return False


def drip(handler: Handler) -> bool:
    """Answer so slowly that each byte comes well within the timeout, but the whole answer does not."""
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + b" " * 99:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.02)
    return True


def refuse(handler: Handler) -> bool:
    """Refuse before the body was read."""
    handler.wfile.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    handler.connection.shutdown(socket.SHUT_WR)
    time.sleep(0.2)
    handler.close_connection = True
    return True


def answer(data: bytes) -> Callable[[Handler], bool]:
    """Answer with `data`, then close the connection."""

    def act(handler: Handler) -> bool:
        handler.rfile.read(int(handler.headers["Content-Length"]))
        handler.wfile.write(data)
        return hang_up(handler)

    return act
