"""``python -m client classify`` of standard input and URLs; pipes that close."""

import contextlib
import csv
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest

import client
from client import ConnectionFailedError
from client import _sources as sources
from client.commands import main
from client.testing import FakeTransport


def test_standard_input(served: FakeTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"piped")))
    assert main(["classify", "-", "--csv"]) == 0
    assert [request.image for request in served.requests] == [b"piped"]
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    said = {"image": "-", "rank": "1", "label": "[cat]", "index": "3", "probability": "0.9"}
    assert rows == [said | {"error": "", "message": "", "request_id": ""}]


def test_a_closed_standard_input_is_said(
    served: FakeTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert main(["classify", "-"]) == 1
    assert "standard input is closed: give it an image, or name a file" in "".join(capsys.readouterr())


def test_a_file_that_is_called_like_standard_input(served: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("-").write_bytes(b"a file")
    monkeypatch.setattr("sys.stdin", None)
    for path in ("./-", "./*", "*"):
        assert main(["classify", path]) == 0
    assert [request.image for request in served.requests] == [b"a file"] * 3


READING = """
import sys
from types import SimpleNamespace
from client.commands import main

def read(typed=sys.stdin.buffer):
    print(flush=True)
    return typed.read()

sys.stdin = SimpleNamespace(buffer=SimpleNamespace(read=read))
raise SystemExit(main())
"""


@pytest.mark.parametrize("command", ["classify", "explain"])
def test_ctrl_c_while_standard_input_is_awaited(command: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", READING, command, "-"]
    words += ["--output", str(tmp_path / "maps")] if command == "explain" else []
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while psutil.Process(process.pid).status() != psutil.STATUS_SLEEPING:  # before the read Python would not see it
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(10) == 130  # its input is still open
        finally:
            process.kill()
        _, error = process.communicate()
    assert b"Traceback" not in error


class Files(BaseHTTPRequestHandler):
    TARGETS: ClassVar = {"/to-a-file": "file:///etc/hostname", "/to-ftp": "ftp://127.0.0.1/a.png"}
    RAW: ClassVar = {
        "/garbage": b"\x00\x01 no HTTP\r\n\r\n",
        "/cut": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc",
        "/cut-at-once": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        "/cut-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\nabc",
    }

    def do_GET(self) -> None:
        if self.path in self.TARGETS:
            self.send_response(302)
            self.send_header("Location", self.TARGETS[self.path])
            self.end_headers()
            return
        if self.path in self.RAW:
            self.wfile.write(self.RAW[self.path])
            return
        if self.path == "/trickle":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            with contextlib.suppress(OSError):  # until nobody reads any more
                for _ in range(1000):
                    self.wfile.write(b"a")
                    time.sleep(0.05)
            return
        if self.path == "/kept-open":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nfetched")
            self.rfile.read()  # until it is closed
            return
        self.send_response(404 if self.path == "/none.png" else 200)
        self.end_headers()
        self.wfile.write(b"fetched")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_urls_are_off_by_default(served: FakeTransport, web: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["classify", f"{web}/a.png"]) == 1
    assert "give --allow-urls" in capsys.readouterr().err
    assert served.requests == []


def test_urls(served: FakeTransport, web: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [f"{web}/a.png", f"{web}/none.png", f"{web}/to-a-file", "http://[bad/"]
    assert main(["classify", *paths, "--allow-urls", "--json"]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["image"] for entry in found] == paths
    assert ["predictions" in entry for entry in found] == [True, False, False, False]
    assert "404" in found[1]["error"]["message"]
    assert [request.image for request in served.requests] == [b"fetched"]
    monkeypatch.setattr(sources, "URL_BYTES", 6)
    for path in ("a.png", "trickle"):  # the rest is not waited for
        assert main(["classify", f"{web}/{path}", "--allow-urls", "--timeout", "5"]) == 1
        assert "more than 6 bytes" in capsys.readouterr().err


def test_urls_go_through_the_proxy(served: FakeTransport, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only http: and https: URLs use a proxy."""
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("http_proxy", "ftp_proxy"):
        monkeypatch.setenv(variable, web)
    assert main(["classify", "http://unknown.invalid/a.png", "--allow-urls"]) == 0
    assert [request.image for request in served.requests] == [b"fetched"]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert main(["classify", f"{web}/to-ftp", "--allow-urls"]) == 1
    assert len(served.requests) == 1


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("{web}/a b.png", "control characters"),
        ("http://127.0.0.1:port/a.png", "nonnumeric port"),
        ("{web}/garbage", "no HTTP"),
        ("{web}/to-ftp", "ftp"),
        ("{web}/cut", "3 bytes came, 997 did not"),
        ("{web}/cut-at-once", "0 bytes came, 1000 did not"),
        ("{web}/cut-chunk", "IncompleteRead"),
    ],
)
def test_urls_that_fail_cost_no_other(
    served: FakeTransport, web: str, path: str, words: str, capsys: pytest.CaptureFixture
) -> None:
    paths = [path.format(web=web), f"{web}/a.png"]
    assert main(["classify", *paths, "--allow-urls", "--json", "--concurrency", "1"]) == 1
    failed, answered = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert failed["error"]["type"] == "InvalidImageError"
    assert words in failed["error"]["message"]
    assert "predictions" in answered
    assert [request.image for request in served.requests] == [b"fetched"]


def test_a_url_has_one_timeout_for_the_whole_download(
    served: FakeTransport, web: str, capsys: pytest.CaptureFixture
) -> None:
    paths = [f"{web}/trickle", f"{web}/kept-open"]
    started = time.monotonic()
    assert main(["classify", *paths, "--allow-urls", "--json", "--timeout", "0.5"]) == 1
    assert time.monotonic() - started < 5
    failed, answered = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "bytes came in 0.5 s" in failed["error"]["message"]
    assert "predictions" in answered
    assert [request.image for request in served.requests] == [b"fetched"]


def test_a_pipe_that_is_closed(served: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output is /dev/null afterwards, so that its flush at exit reports no error either."""
    Path("a.png").write_bytes(b"a")
    moved: list[int] = []
    monkeypatch.setattr("client.commands.os.dup2", lambda source, target: moved.append(target))
    monkeypatch.setattr("client.commands._results.JsonResults.write", raiser(BrokenPipeError))
    with open("out", "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        assert main(["classify", "a.png", "--json"]) == 1
        assert moved == [out.fileno()]


def raiser(kind: type[BaseException]) -> Callable[..., Any]:
    def act(*arguments: Any) -> Any:
        raise kind

    return act


def test_python_m_client(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["client", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(Path(client.__file__).with_name("__main__.py")), run_name="__main__")
    assert end.value.code == 0
    assert "{classify,watch,explain,status,bench}" in capsys.readouterr().out


def test_a_path_that_may_not_be_looked_at_costs_no_other(
    served: FakeTransport, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    good = tmp_path / "good.png"
    good.write_bytes(b"good")
    assert main(["classify", "a" * 300, str(good), "--json"]) == 1
    failed, answered = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert failed["error"]["type"] == "InvalidImageError"
    assert "cannot be read" in failed["error"]["message"]
    assert answered["image"] == str(good)


def test_a_folder_that_may_not_be_read_is_said(
    served: FakeTransport, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "good.png").write_bytes(b"good")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert main(["classify", str(tmp_path), "--json"]) == 1
    failed, answered = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert failed["error"]["message"] == (
        f"{tmp_path}/secret cannot be read (Permission denied): its images are left out"
    )
    assert answered["image"] == str(tmp_path / "good.png")


@pytest.mark.parametrize("command", ["classify", "explain"])
def test_what_is_no_image_by_its_suffix_is_counted(
    served: FakeTransport, command: str, capsys: pytest.CaptureFixture
) -> None:
    Path("mix/sub").mkdir(parents=True)
    for name in ("a.heic", "b.HEIC", "sub/c.heic", "c.tif", "d.tif", "README", ".hidden.tif"):
        Path("mix", name).write_bytes(b"x")
    served.reply = ConnectionFailedError("refused")
    Path("a.png").write_bytes(b"a")
    assert main([command, "a.png", "mix", "mi*", os.path.abspath("mix"), "mix/sub/../c.tif"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "passed over, no image by suffix: 3 .heic, 1 no suffix, 1 .tif"  # c.tif is sent
    for number in range(4):
        Path(f"mix/{number}.{number}").write_bytes(b"x")
    assert main([command, "mix"]) == 1
    assert capsys.readouterr().err.startswith(
        "passed over, no image by suffix: 3 .heic, 2 .tif, 1 .0, 1 .1, 1 .2, ...\n"
    )
