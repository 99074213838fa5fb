"""The image's probe on a fake tritonserver: what is ready, what is alive, and what it says otherwise."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from manifests import IMAGE, ROOT


class Fake(BaseHTTPRequestHandler):
    """Says what a tritonserver in the state `self.server.state` says."""

    def answer(self, status, body=b"{}"):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/v2/health/ready":
            return self.answer(400 if self.server.state == "loading" else 200)
        self.server.answered += self.server.state.startswith("busy")
        success = {"success": {"count": self.server.answered}}
        statistics = {"model_stats": [{"name": "classifier_explained", "inference_stats": success}]}
        return self.answer(200, json.dumps(statistics).encode())

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        state = self.server.state
        if state in ("dead", "busy, dead"):
            return self.answer(500, b"Stub process is not healthy")
        if state in ("busy, full", "stuck, full"):
            return self.answer(503, b"Exceeds maximum queue size")
        if state in ("busy, slow", "stuck, slow"):
            self.server.release.wait(30)
            return None
        return self.answer(200, b'{"outputs": [{"data": [1.0]}]}')

    def log_message(self, *arguments):
        pass


@pytest.fixture
def fake():
    with ThreadingHTTPServer(("127.0.0.1", 0), Fake) as server:
        server.answered, server.release = 0, threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.release.set()
        server.shutdown()


@pytest.fixture
def probe(tmp_path):
    """probe(port, question, seconds for the inference): as in the image, beside the modules that it imports."""
    for module in (ROOT / "server" / "canary.py", IMAGE / "check_settings.py"):
        shutil.copy(module, tmp_path)
    text = (IMAGE / "probe.py").read_text()

    def run(port, *question, seconds=8.0, **variables):
        (tmp_path / "probe.py").write_text(text.replace("INFERENCE_SECONDS = 8.0", f"INFERENCE_SECONDS = {seconds}"))
        environment = {**os.environ, "WIDEFIELD_HTTP_PORT": str(port), **variables}
        command = [sys.executable, "-S", str(tmp_path / "probe.py"), *question]  # the standard library is enough
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, "127.0.0.1"),
        ({"WIDEFIELD_HOST": "0.0.0.0"}, "127.0.0.1"),
        ({"WIDEFIELD_HOST": "::"}, "[::1]"),
        ({"WIDEFIELD_HOST": "127.0.0.2"}, "127.0.0.2"),
        ({"WIDEFIELD_HOST": "::2"}, "[::2]"),
        ({"WIDEFIELD_HOST": "127.0.0.2", "WIDEFIELD_HTTP_HOST": "127.0.0.3"}, "127.0.0.3"),
        ({"WIDEFIELD_HOST": "127.0.0.2", "WIDEFIELD_TLS_CERT": "/tls/tls.crt"}, "127.0.0.1"),
    ],
    ids=str,
)
def test_where_the_entry_point_lets_http_listen(probe, variables, asked):
    done = probe(9, "alive", **variables)
    assert done.returncode == 1
    assert f"{asked}:9" in done.stderr


@pytest.mark.parametrize(
    ("state", "ready", "alive"),
    [
        ("well", 0, 0),
        ("loading", 1, 0),
        ("dead", 1, 1),
        ("busy, full", 0, 0),
        ("busy, slow", 0, 0),
        ("busy, dead", 1, 1),  # an error is no busyness
        ("stuck, full", 1, 1),
        ("stuck, slow", 1, 1),
    ],
)
def test_probe(fake, probe, state, ready, alive):
    fake.state = state
    for question, expected in (("ready", ready), ("alive", alive)):
        done = probe(fake.server_port, question, seconds=0.5)
        assert done.returncode == expected, done.stderr
        assert bool(done.stderr) == bool(expected)


def test_probe_says_why(fake, probe):
    fake.state = "dead"
    assert "Stub process is not healthy" in probe(fake.server_port, "alive").stderr
    fake.state = "stuck, full"
    assert "no other request was answered" in probe(fake.server_port, "alive", seconds=0.3).stderr
    assert probe(fake.server_port, "healthy").returncode == 2


def test_probe_fits_the_time_it_gets(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "server"), str(IMAGE), *sys.path])
    namespace = {"__name__": "probe"}
    exec((IMAGE / "probe.py").read_text(), namespace)
    # ready, count, the canary, and one count after the deadline
    assert namespace["INFERENCE_SECONDS"] + 3 * namespace["STATUS_SECONDS"] < 15
