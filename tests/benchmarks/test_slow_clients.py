"""The benchmark of slow clients reports a server that answers nobody else meanwhile."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import psutil

from benchmarks.slow_clients import measure


class Refusing(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.send_error(503)

    def log_message(self, *_: object) -> None: ...


def test_no_canary_is_answered() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as stub:
        threading.Thread(target=stub.serve_forever, args=(0.01,), daemon=True).start()
        server = SimpleNamespace(http_url=f"127.0.0.1:{stub.server_address[1]}")
        row = measure(server, psutil.Process(), "HTTP, the header a byte a second", clients=1, seconds=0.1)
        stub.shutdown()
    assert (row["canary_p50_ms"], row["canary_max_ms"], row["canary_failed"]) == (None, None, 30)
