"""``python -m client watch | explain | status | bench``, standard input and URLs, over fakes and local servers."""

import csv
import io
import json
import os
import runpy
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import client
from client import (
    Answer,
    ConnectionFailedError,
    InvalidImageError,
    ModelNotFoundError,
    Prediction,
    QueueFullError,
    ServerStatus,
    _async_classifier,
    _classifier,
    overlay,
)
from client import _sources as sources
from client._status import parse_status
from client.commands import bench, main, watch
from client.testing import AsyncFakeTransport, FakeTransport

CAT = [Prediction("[cat]", 3, 0.9)]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTransport:
    monkeypatch.chdir(tmp_path)
    fake = FakeTransport(CAT)
    monkeypatch.setattr(_classifier, "open_transports", lambda *arguments: [fake])
    return fake


@pytest.fixture
def async_fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncFakeTransport:
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(b"a")
    fake = AsyncFakeTransport(CAT)
    monkeypatch.setattr(_async_classifier, "open_async_transports", lambda *arguments: [fake])
    return fake


# Standard input and URLs


def test_standard_input(fake: FakeTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"piped")))
    assert main(["classify", "-", "--csv"]) == 0
    assert [request.image for request in fake.requests] == [b"piped"]
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert rows == [
        {"image": "-", "rank": "1", "label": "[cat]", "index": "3", "probability": "0.9", "error": "", "message": ""}
    ]


class Files(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/to-a-file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
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


def test_urls_are_off_by_default(fake: FakeTransport, web: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["classify", f"{web}/a.png"]) == 1
    assert "give --allow-urls" in capsys.readouterr().err
    assert fake.requests == []


def test_urls(fake: FakeTransport, web: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [f"{web}/a.png", f"{web}/none.png", f"{web}/to-a-file", "http://[bad/"]
    assert main(["classify", *paths, "--allow-urls", "--json"]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["image"] for entry in found] == paths
    assert ["predictions" in entry for entry in found] == [True, False, False, False]
    assert "404" in found[1]["error"]["message"]
    assert [request.image for request in fake.requests] == [b"fetched"]
    monkeypatch.setattr(sources, "URL_BYTES", 6)
    assert main(["classify", f"{web}/a.png", "--allow-urls"]) == 1
    assert "more than 6 bytes" in capsys.readouterr().err


def test_a_pipe_that_is_closed(fake: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output leads nowhere afterwards, so that nothing is said at the program's end either."""
    Path("a.png").write_bytes(b"a")
    moved: list[int] = []
    monkeypatch.setattr("client.commands.os.dup2", lambda source, target: moved.append(target))
    monkeypatch.setattr("client.commands._results.JsonResults.write", raiser(BrokenPipeError))
    with open("out", "w") as out:
        monkeypatch.setattr("sys.stdout", out)
        assert main(["classify", "a.png", "--json"]) == 1
        assert moved == [out.fileno()]


def test_what_cannot_be_written(fake: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    Path("file").touch()
    assert main(["explain", "a.png", "--output", "file"]) == 1
    assert "File exists: 'file'" in capsys.readouterr().err


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


# watch


def watched(fake: FakeTransport, folder: Path, *arguments: str, looks: list[Callable[[], object]]) -> int:
    """Runs ``watch``; each of `looks` runs before a look, then Ctrl-C."""
    steps = iter(looks)

    def sleep(seconds: float) -> None:
        try:
            next(steps)()
        except StopIteration:
            raise KeyboardInterrupt from None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "time", SimpleNamespace(sleep=sleep))
        return main(["watch", str(folder), "--retries", "0", *arguments])


def write(name: str, data: bytes, age: int = 0) -> Callable[[], object]:
    def act() -> None:
        Path(name).write_bytes(data)
        os.utime(name, ns=(age, age))

    return act


def nothing() -> None:
    pass


def test_watch(fake: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    Path("in").mkdir()
    write("in/old.png", b"old")()
    looks = [
        nothing,
        write("in/new.png", b"ne", 1),
        write("in/new.png", b"new", 2),  # still being written
        nothing,
        nothing,
        write("in/old.png", b"replaced", 3),
        nothing,
        lambda: Path("in/old.png").unlink(),
        nothing,
        write("in/old.png", b"replaced", 3),
        nothing,
    ]
    assert watched(fake, Path("in"), looks=looks) == 130
    assert [request.image for request in fake.requests] == [b"old", b"new", b"replaced", b"replaced"]
    assert capsys.readouterr().out.splitlines()[0] == "in/old.png\t[cat]\t90.00%"
    assert fake.closed == 1


def test_watch_new_only_as_json(fake: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    Path("in").mkdir()
    write("in/old.png", b"old")()
    assert (
        watched(fake, Path("in"), "--new-only", "--json", looks=[nothing, write("in/new.png", b"new"), nothing]) == 130
    )
    assert [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()] == ["in/new.png"]


def test_watch_loses_nothing_while_the_server_is_away(fake: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    Path("in").mkdir()
    write("in/a.png", b"a")()
    write("in/bad.png", b"bad")()

    def away(request: Any) -> Any:
        return InvalidImageError("no picture") if request.image == b"bad" else QueueFullError("full")

    def back() -> None:
        fake.reply = lambda request: CAT

    fake.reply = away
    assert watched(fake, Path("in"), looks=[nothing, nothing, back, nothing]) == 130
    assert [request.image for request in fake.requests].count(b"a") == 3
    assert [request.image for request in fake.requests].count(b"bad") == 1
    out, err = capsys.readouterr()
    assert out == "in/a.png\t[cat]\t90.00%\n"
    assert err.splitlines() == ["in/bad.png: no picture", "1 put off: full", "1 put off: full"]


def test_watch_of_a_file_that_goes(fake: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "find_images", lambda folder: [Path("gone.png")])
    assert watch.Arrivals(Path(), False).ready() == []
    assert main(["watch", "no folder"]) == 2


# explain


def gradient(request: Any) -> Any:
    assert request.class_map
    assert request.model == "classifier_explained"
    return Answer(CAT, np.array([[0.0, 4.0], [-3.0, 2.0]], np.float32))


def test_explain(fake: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    fake.reply = gradient
    for folder in ("one", "two"):
        Path(folder).mkdir()
        Image.new("RGB", (64, 32), (10, 20, 30)).save(f"{folder}/a.png")
    Path("bad.png").write_bytes(b"text")
    assert main(["explain", "one", "two", "bad.png", "no.png", "--output", "out", "--crop-pct", "0.5"]) == 1
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png.explained.2.png", "a.png.explained.png"]
    picture = np.asarray(Image.open("out/a.png.explained.png"))
    assert picture.shape == (32, 64, 3)
    inside = np.zeros((32, 64), bool)
    inside[8:24, 24:40] = True  # half of the shorter side, in the middle
    assert (picture[~inside] == (10, 20, 30)).all()
    assert (picture[inside] != (10, 20, 30)).any(axis=1).all()
    assert picture[9, 38, 0] > 120 > picture[22, 25, 0]  # warm where the evidence is, cold where it speaks against
    out, err = capsys.readouterr()
    assert "[cat]" in out
    assert "cannot be decoded here" in err
    assert "2 overlays in out" in err


def test_explain_without_a_class_map(fake: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    Path("a.png").write_bytes(b"a")
    fake.reply = ModelNotFoundError("the server has no model 'classifier_explained'")
    assert main(["explain", "a.png"]) == 1
    assert "classifier_explained" in capsys.readouterr().err
    fake.reply = CAT
    assert main(["explain", "a.png"]) == 1
    assert "no class map" in capsys.readouterr().err
    assert main(["explain", "a.png", "--crop-pct", "1.5"]) == 2


def test_explain_a_file_that_is_away(fake: FakeTransport) -> None:
    assert main(["explain", "*.tiff"]) == 1
    assert fake.requests == []


def test_explain_standard_input(fake: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.reply = gradient
    data = io.BytesIO()
    Image.new("L", (8, 8)).save(data, "PNG")
    data.seek(0)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=data))
    assert main(["explain", "-"]) == 0
    assert Path("explained/stdin.explained.png").exists()


def test_overlay_turns_the_picture_as_the_server_does() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.new("RGB", (40, 20)).save(data, "JPEG", exif=exif)
    assert overlay(data.getvalue(), np.zeros((2, 2), np.float32)).size == (20, 40)
    with pytest.raises(ValueError, match="strength is 2"):
        overlay(data.getvalue(), np.zeros((2, 2)), strength=2)


# status


def counted(count: int, seconds: float = 0.0) -> dict[str, Any]:
    return {"count": str(count), "ns": str(int(seconds * 1e9))}


def server_status(images: int = 10, ready: bool = True) -> ServerStatus:
    times = {"queue": counted(images, 0.02 * images), "compute_infer": counted(images, 0.03 * images)}
    model = {"name": "backbone", "version": "1", "inference_count": str(images), "execution_count": str(images // 2)}
    ensemble = {"name": "classifier", "version": "1", "inference_stats": {"success": counted(images, 0.05 * images)}}
    entries = {"model_stats": [ensemble, {**model, "inference_stats": times}]}
    return parse_status("grpc://box:1", {"name": "triton", "version": "2.51.0"}, ready, entries)


def test_status(fake: FakeTransport, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    away = FakeTransport(url="grpc://away:1")

    def refuse(timeout: float) -> Any:
        raise ConnectionFailedError("refused")

    monkeypatch.setattr(away, "status", refuse)
    monkeypatch.setattr(fake, "status", lambda timeout: server_status())
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["status"]) == 0
    out, err = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert rows == [
        ["backbone", "1", "10", "5", "0", "", "20.00", "", "30.00", ""],
        ["classifier", "1", "0", "0", "0", "50.00", "", "", "", ""],
    ]
    assert "2.51.0  ready" in out
    assert err == ""
    monkeypatch.setattr(_classifier, "open_transports", lambda *arguments: [fake, away])
    assert main(["status"]) == 1
    assert "grpc://away:1: refused" in capsys.readouterr().err
    assert main(["status", "--json"]) == 1
    one, other = map(json.loads, capsys.readouterr().out.splitlines())
    assert one["models"][0]["queue"] == {"count": 10, "seconds": 0.2}
    assert other == {
        "url": "grpc://away:1",
        "ready": False,
        "error": {"type": "ConnectionFailedError", "message": "refused"},
    }
    assert main(["status", "--csv"]) == 1
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["queue_ms"] for row in rows] == ["20.00", ""]
    monkeypatch.setattr(_classifier, "open_transports", lambda *arguments: [fake])
    monkeypatch.setattr(fake, "status", lambda timeout: server_status(ready=False))
    assert main(["status"]) == 1
    assert "NOT READY" in capsys.readouterr().out


# bench


def measured(*arguments: str, status: int = 0) -> int:
    return main(["bench", "a.png", "--seconds", "0.4", "--warm-up", "0.05", *arguments])


def test_bench_closed_loop(
    async_fake: AsyncFakeTransport, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def reply(request: Any) -> Any:
        await bench.asyncio.sleep(0.05)
        return CAT

    statuses = iter([server_status(10), server_status(30)])

    async def status(timeout: float) -> ServerStatus:
        return next(statuses)

    async_fake.reply = reply
    monkeypatch.setattr(async_fake, "status", status)
    assert measured("--concurrency", "4", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["load"] == {"concurrency": 4}
    assert async_fake.most_in_flight == 4
    assert 0 < report["answered"] <= 36
    assert report["errors"] == {}
    assert 50 <= report["latency_ms"]["p50"] <= report["latency_ms"]["p99"] <= report["latency_ms"]["max"]
    assert report["images_per_s"] == pytest.approx(report["answered"] / report["seconds"], rel=0.01)
    step = {"queue": 20.0, "compute_input": 0.0, "compute": 30.0, "compute_output": 0.0}
    assert report["server_ms"] == {"backbone": step}


def test_bench_open_loop_counts_from_when_each_was_due(
    async_fake: AsyncFakeTransport, capsys: pytest.CaptureFixture
) -> None:
    """This program stalls for 0.3 s once: every image that was due meanwhile is charged with it."""
    stalls = iter([0.3])

    async def reply(request: Any) -> Any:
        if len(async_fake.requests) == 40:
            time.sleep(next(stalls, 0))
        return CAT

    async_fake.reply = reply
    assert measured("--rate", "200", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["load"] == {"rate": 200.0}
    assert report["sent_late_ms"] > 200
    assert report["latency_ms"]["max"] >= 250
    assert report["latency_ms"]["p90"] > 100  # about 60 of 80 were due meanwhile


def test_bench_errors(async_fake: AsyncFakeTransport, capsys: pytest.CaptureFixture) -> None:
    async_fake.reply = QueueFullError("full")
    assert measured("--concurrency", "2", "--csv") == 1
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert int(row["errors.QueueFullError"]) > 5
    assert (row["answered"], row["latency_ms.p50"]) == ("0", "")
    assert measured() == 1
    assert "QueueFullError" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "no.png"], "No such file"),
        (["bench", "*.tiff"], "matches no file"),
        (["bench", "a.png", "--rate", "x"], "more than 0"),
        (["bench", "a.png", "--rate", "1", "--concurrency", "2"], "not allowed with"),
        (["bench", "a.png", "--tls-certificate", "c.pem"], "both or neither"),
        (["classify", "a.png", "--top", "x"], "1 or more"),
    ],
)
def test_wrong_usage(
    async_fake: AsyncFakeTransport, arguments: list[str], words: str, capsys: pytest.CaptureFixture
) -> None:
    try:
        status: object = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert words in capsys.readouterr().err
