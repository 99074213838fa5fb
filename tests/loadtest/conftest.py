"""The servers that the load goes to, and the command that sends it."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_repository import write_tiny_repository

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def load_server(serving: Callable[..., Any]) -> Iterator["TritonServer"]:  # noqa: F821
    """A real tritonserver with a model named `classifier`; any other will do (``return digits_server``)."""
    with serving(write_tiny_repository) as server:
        yield server


@pytest.fixture
def loadtest() -> Callable[..., subprocess.CompletedProcess]:
    """loadtest("--users", "2") -> the completed `python -m loadtest`."""

    def run(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "loadtest", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=timeout)

    return run


@pytest.fixture
def locust() -> Callable[..., subprocess.CompletedProcess]:
    """locust("-u", "2", cwd=...) -> what locust itself did with loadtest/locustfile.py."""

    def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
        locust = [str(Path(sys.executable).parent / "locust"), "-f", str(ROOT / "loadtest/locustfile.py"), "--headless"]
        return subprocess.run([*locust, *arguments], capture_output=True, text=True, cwd=cwd, timeout=60)

    return run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number in range(5):
        Image.new("RGB", (64, 48), (50 * number, 80, 120)).save(tmp_path / f"{number}.jpg")
    return tmp_path


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that refuses connections."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


class CountingServer(ThreadingHTTPServer):
    """Answers after `delay` seconds with one label; after the `stall_at`th request all wait for `stall` seconds."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, status: int = 200, stall_at: int = 0, stall: float = 0.0, delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.stall_at, self.stall = status, stall_at, stall
        self.delay = delay
        self.stalled_until = 0.0
        self.count = 0
        self.asked: list[tuple[dict[str, Any], bytes]] = []  # each request's JSON and image
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


ANSWER = b'{"outputs": [{"name": "probabilities", "data": ["1.0:0:one"]}]}'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet
    server: CountingServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers["Inference-Header-Content-Length"])
        with self.server.lock:
            self.server.asked.append((json.loads(body[:length]), body[length:]))
            self.server.count += 1
            if self.server.count == self.server.stall_at:
                self.server.stalled_until = time.monotonic() + self.server.stall
        time.sleep(self.server.delay)
        time.sleep(max(0.0, self.server.stalled_until - time.monotonic()))
        body = ANSWER if self.server.status == 200 else b'{"error": "refused"}'
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def counting_server() -> Iterator[Callable[..., CountingServer]]:
    servers = []

    def start(**options: float) -> CountingServer:
        servers.append(CountingServer(**options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
