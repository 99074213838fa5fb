"""What the page shows, from a transport without a server; Gradio is not needed."""

import html
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import page
from client import (
    Answer,
    Classifier,
    ClassifierError,
    ConnectionFailedError,
    Crop,
    InvalidImageError,
    ModelNotFoundError,
    ModelStatus,
    Prediction,
    Request,
    ServerStatus,
    Times,
)
from client.testing import FakeTransport

ROOT = Path(__file__).parents[2]
CLASSES = [("crane", 134, 0.5), ("heron", 131, 0.25), ("crane", 517, 0.125), ("<b>", 3, 0.1), ("stork", 1, 0.025)]
NAMED = {"crane": 0.5, "heron": 0.25, "crane (517)": 0.125, "<b>": 0.1, "stork": 0.025}
MS = {"softmax": (0.5, 1.0), "preprocess": (3.0, 2.0), "backbone": (5.0, 10.0), "another": (0.0, 1.0)}  # queue, compute


class Counting(FakeTransport):
    """A server that counts its answers; `late` readings pass before the last step is counted."""

    def __init__(self, reply: object, late: int = 0, others: int = 0) -> None:
        super().__init__(reply)
        self.late, self.others = late, others

    def status(self, timeout: float) -> ServerStatus:
        count = 100
        if self.requests:
            count += 1 + self.others
            self.late -= 1
        models = []
        for name, (queue, compute) in {**MS, "classifier_explained": (0.0, 13.0)}.items():
            known = 100 if name == "another" or (name == "softmax" and self.late >= 0) else count
            part = Times(known, known * compute / 4000)
            rest = Times(known, known * compute / 2000)
            times = (Times(known, known * queue / 1000), part, rest, part)
            models.append(ModelStatus(name, "1", known, known, Times(known, 0.02), Times(0, 0.0), *times))
        return ServerStatus(self.url, "fake", "0", True, models)


class Mute(FakeTransport):
    def status(self, timeout: float) -> ConnectionFailedError:
        raise ConnectionFailedError("no statistics")


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., str]:
    def make(width: int = 300, height: int = 200, orientation: int = 1) -> str:
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (width, height), (9, 9, 9)).save(tmp_path / "picture.jpg", exif=exif)
        return str(tmp_path / "picture.jpg")

    return make


def explained(request: Request) -> Answer:
    if request.class_map:
        class_map = np.array([[0, 1], [2, 3]], np.float32)
        return Answer([Prediction(*each) for each in CLASSES], class_map, Crop(1 / 3, 1 / 4, 2 / 3, 3 / 4))
    raise AssertionError("asked without a map")


def unexplained(request: Request) -> object:
    return ModelNotFoundError("the server has no model") if request.class_map else CLASSES


def ask(transport: FakeTransport, image: str | None) -> page.Shown:
    with Classifier(transport=transport, retries=0) as classifier:
        return page.ask(classifier, image)


def test_an_answer(picture: Callable[..., str]) -> None:
    fake = Counting(explained)
    shown = ask(fake, picture())
    assert shown.classes == NAMED
    assert list(shown.classes) == list(NAMED)
    assert shown.picture is not None
    assert shown.picture.size == (300, 200)
    assert not shown.note
    assert not shown.failed
    assert [request.top for request in fake.requests] == [5]  # one request for all
    assert fake.requests[0].image == Path(picture()).read_bytes()  # as it was dropped


def test_times_of_the_steps_in_the_pipelines_order(picture: Callable[..., str]) -> None:
    shown = ask(Counting(explained), picture())
    steps = dict(shown.times)
    assert list(steps) == ["preprocess", "backbone", "softmax", "queue", "network", "total"]
    expected = {"preprocess": 2.0, "backbone": 10.0, "softmax": 1.0, "queue": 8.5}
    assert {name: steps[name] for name in expected} == pytest.approx(expected)
    assert steps["network"] >= 0
    assert shown.requests == 1


def test_rows_add_up() -> None:
    times = dict.fromkeys(page.STEPS, Times(2, 0.004))
    rows, requests = page.time_by_step({"mine": times, "backbone": times, "classifier": times}, 0.1, "classifier")
    assert dict(rows) == pytest.approx({"backbone": 6, "mine": 6, "queue": 4, "network": 84, "total": 100})
    assert [name for name, _ in rows][:2] == ["backbone", "mine"]
    assert requests == 2
    assert dict(page.time_by_step({"backbone": times}, 0.001, "classifier")[0])["network"] == 0


def test_the_last_step_is_counted_after_its_answer(picture: Callable[..., str]) -> None:
    assert "softmax" in dict(ask(Counting(explained, late=1), picture()).times)


def test_the_wait_for_it_ends(picture: Callable[..., str]) -> None:
    class Busy(Counting):
        def status(self, timeout: float) -> ServerStatus:
            self.others += 1
            return super().status(timeout)

    shown = ask(Busy(explained), picture())
    assert shown.requests > 1
    assert f"answered {shown.requests} requests meanwhile" in page.times_html(shown)


def test_a_server_without_statistics(picture: Callable[..., str]) -> None:
    shown = ask(Mute(explained), picture())
    assert shown.classes == NAMED
    assert [name for name, _ in shown.times] == ["total"]
    assert "does not tell" in page.times_html(shown)


def test_a_model_without_a_map(picture: Callable[..., str]) -> None:
    shown = ask(Counting(unexplained), picture())
    assert shown.classes == NAMED
    assert shown.picture is None
    assert "no explained model" in shown.note
    assert not shown.failed
    assert 'class="note" role="status">The server has' in page.note_html(shown)


def test_the_time_is_the_answers_alone(picture: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed request for a map is not counted."""
    clock = [0.0]

    def reply(request: Request) -> object:
        clock[0] += 5.0 if request.class_map else 0.25
        return unexplained(request)

    monkeypatch.setattr(page, "time", SimpleNamespace(perf_counter=lambda: clock[0], sleep=time.sleep))
    assert dict(ask(Mute(reply), picture()).times) == {"total": 250.0}


def test_one_of_two_servers_tells_its_times() -> None:
    fake = Counting(explained)

    def status(timeout: float) -> list[object]:
        return [ConnectionFailedError("it is down"), fake.status(timeout)]

    before = status(1.0)
    fake.requests.append(Request("classifier", b"", 5, 1.0, 1.0, "an id"))
    assert page.settled(SimpleNamespace(status=status), before)["backbone"]["compute"].count == 1


def test_a_picture_that_only_the_server_can_decode(tmp_path: Path) -> None:
    (tmp_path / "odd").write_bytes(b"odd")
    shown = ask(Counting(explained), str(tmp_path / "odd"))
    assert shown.classes == NAMED
    assert shown.picture is None
    assert "no overlay: the picture cannot be decoded here" in shown.note


@pytest.mark.parametrize("kind", [ConnectionFailedError, InvalidImageError, ModelNotFoundError])
def test_errors_are_shown(kind: type[ClassifierError], picture: Callable[..., str]) -> None:
    shown = ask(Counting(lambda request: kind("no <server>")), picture())
    assert shown == page.Shown(note="no <server>", failed=True)
    text = page.note_html(shown)
    assert 'class="note error" role="alert"' in text
    assert "<server>" not in text
    assert picture() not in text  # no path of the page's own machine
    assert page.times_html(shown) == ""


def test_the_picture_is_taken_away() -> None:
    fake = Counting(explained)
    assert ask(fake, None) == page.Shown()
    assert fake.requests == []
    assert page.note_html(page.Shown()) == ""


def test_sizes(picture: Callable[..., str]) -> None:
    for given, shown in {(4, 8): (128, 256), (2000, 500): (1024, 256), (300, 200): (300, 200)}.items():
        found = ask(Counting(explained), picture(*given)).picture
        assert found is not None
        assert found.size == shown
    turned = ask(Counting(explained), picture(4, 8, orientation=6)).picture
    assert turned is not None
    assert turned.size == (256, 128)


def test_only_the_crop_is_covered(picture: Callable[..., str]) -> None:
    found = ask(Counting(explained), picture()).picture
    pixels = np.asarray(found).astype(int)
    assert abs(pixels[10, 10] - 9).max() < 3
    assert abs(pixels[100, 150] - 9).max() > 20


def test_classes_that_are_all_unlikely_differ() -> None:
    classes = {"crane": 0.0043, "heron": 0.0042, "stork": 0.001, "tit": 0.0004, "best": 0.9912}
    cells = re.findall(r"<td>([^<]*)</td>", page.classes_html(page.Shown(classes)))
    assert dict(zip(cells[::2], map(html.unescape, cells[1::2]), strict=True)) == {
        "crane": "0.4 %",
        "heron": "0.4 %",
        "stork": "0.1 %",
        "tit": "< 0.1 %",
        "best": "99.1 %",
    }
    assert page.classes_html(page.Shown()) == ""


def test_a_step_whose_mean_is_longer_than_the_request_stays_in_the_table() -> None:
    """The means include the times of other requests."""
    text = page.times_html(page.Shown(times=[("backbone", 30.0), ("total", 20.0)], requests=2))
    assert re.findall(r"width: ([^%]*)%", text) == ["100.0", "100.0"]


def test_labels_are_text_in_the_table() -> None:
    assert "<b>" not in page.classes_html(page.Shown({"<b>": 0.5}))
    assert "<b>" not in page.times_html(page.Shown(times=[("<b>", 1.0), ("total", 2.0)]))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("--concurrency 0", "1 or more"),
        ("--max-megabytes 0", "1 or more"),
        ("--max-megabytes nan", "1 or more"),
        ("--max-megabytes inf", "1 or more"),
        ("--url a:b:c", "a:b:c"),
        ("--timeout 0", "timeout"),
        ("--port 65536", "--port 65536: give a number, 1 to 65535"),
        ("--port 0", "1 to 65535"),
        ("--root-path try", "it begins with /, such as /try"),
    ],
)
def test_wrong_options(wrong: str, words: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        page.options_of(wrong.split())
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_the_help_names_the_unit(capsys: pytest.CaptureFixture) -> None:
    """`test_the_launch` holds that it is this one."""
    with pytest.raises(SystemExit):
        page.options_of(["--help"])
    assert "largest picture, in MiB" in capsys.readouterr().out


def test_options() -> None:
    options = page.options_of(["--url", "a:1", "--url", "b:2", "--protocol", "http", "--root-path", "/try"])
    assert [url.partition("://")[2] for url in options.classifier.urls] == ["a:1", "b:2"]
    assert (options.host, options.port, options.root_path) == ("127.0.0.1", 7860, "/try")
    options.classifier.close()
    words = ["--root-path", "https://box.example/try", "--model", "mine", "--timeout", "3"]
    with page.options_of(words).classifier as classifier:
        assert len(classifier.urls) == 1
        assert (classifier.model, classifier.timeout) == ("mine", 3.0)


def test_a_server_behind_a_gateway() -> None:
    seen = []

    class Gateway(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_error(503)

    with HTTPServer(("127.0.0.1", 0), Gateway) as gateway:
        Thread(target=gateway.handle_request, daemon=True).start()
        words = ["--url", f"127.0.0.1:{gateway.server_port}", "--protocol", "http", "--header", "Authorization: key"]
        with page.options_of(words).classifier as classifier:
            assert isinstance(classifier.status(5.0)[0], ClassifierError)
    assert seen == ["key"]
    with page.options_of(["--tls"]).classifier as classifier:
        assert classifier.urls[0].startswith("grpcs://")


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_no_gradio(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for each in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(each, "elsewhere" if each == name else "")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert page.main(["--url", "127.0.0.1:1"]) == 1
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "elsewhere,127.0.0.1,127.0.0.1,localhost"
    assert "make page has the environment for it" in capsys.readouterr().err


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The arguments that Gradio would be started with; an "error" in it is raised instead."""
    found: dict[str, Any] = {}

    def launch(**options: Any) -> None:
        if "error" in found:
            raise found["error"]
        found.update(options)

    def wait() -> None:
        found["on SIGTERM"] = signal.getsignal(signal.SIGTERM)

    def build(answer: Callable[[str | None], page.Shown], concurrency: int) -> tuple[Any, Any]:
        found.update(shown=answer(None), concurrency=concurrency)
        return SimpleNamespace(launch=launch, local_url="http://here:7/", block_thread=wait), "a theme"

    monkeypatch.setattr(page, "build", build)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    before = signal.getsignal(signal.SIGTERM)
    yield found
    signal.signal(signal.SIGTERM, before)


def test_the_launch(launched: dict[str, Any], capsys: pytest.CaptureFixture) -> None:
    """It listens where it is told to, nowhere else: no tunnel, no statistics; SIGTERM ends it as Ctrl-C does."""
    words = ["--url", "127.0.0.1:1", "--host", "::1", "--port", "7861", "--root-path", "/try", "--concurrency", "3"]
    assert page.main([*words, "--max-megabytes", "1.5"]) == 0
    assert (launched["server_name"], launched["server_port"], launched["root_path"]) == ("::1", 7861, "/try")
    assert (launched["shown"], launched["concurrency"], launched["max_file_size"]) == (page.Shown(), 3, 3 * 2**19)
    assert page.OFF.items() <= launched.items()
    assert not any(launched[name] for name in ("share", "ssr_mode", "mcp_server", "run_history", "footer_links"))
    assert (launched["css"], launched["theme"], launched["prevent_thread_lock"]) == (page.CSS, "a theme", True)
    assert launched["on SIGTERM"] is signal.default_int_handler
    assert capsys.readouterr().out == "the page is at http://here:7/, its server at grpc://127.0.0.1:1\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("Cannot find empty port"), "127.0.0.1:7860 is taken, or not this machine's: see --port"),
        (OSError(13, "Permission denied"), "[Errno 13] Permission denied"),
    ],
)
def test_a_launch_that_fails(
    error: OSError, said: str, launched: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    launched["error"] = error
    assert page.main(["--url", "127.0.0.1:1"]) == 1
    assert capsys.readouterr() == ("", f"page: {said}\n")


def test_it_talks_through_the_client_alone() -> None:
    code = "import page, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    own = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert own & set(done.stdout.split()) == {"page", "client"}
    assert {"torch", "gradio", "PIL"} & set(done.stdout.split()) == set()


def test_the_page_is_in_the_wheel_and_its_pins_fit() -> None:
    pins = dict(line.split(" ;")[0].split("==") for line in (ROOT / "constraints-page.txt").read_text().splitlines())
    project = (ROOT / "pyproject.toml").read_text()
    assert f'page = ["gradio>={pins["gradio"].rpartition(".")[0]}", ' in project  # 6.0's launch lacks options of OFF
    assert "torch" not in pins
    assert 'py-modules = ["page"]' in project
