"""The page in a real Chromium, its answers from a real tritonserver."""

import asyncio
import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from PIL import Image

from client import Classifier

pytestmark = [pytest.mark.server, pytest.mark.slow]

STEPS = ["preprocess", "backbone", "softmax", "queue", "network", "total"]
SECONDS = 30


@pytest.fixture(scope="session")
def flower() -> Path:
    """A real photograph, 640 x 427."""
    import sklearn.datasets

    return Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg"


class Page:
    def __init__(self, browser: Any, address: str) -> None:
        self.browser, self.address = browser, address
        browser.get_log("performance"), browser.get_log("browser")
        browser.get(address)

    def found(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def wait(self, selector: str) -> Any:
        from selenium.webdriver.support.wait import WebDriverWait

        (first, *_) = WebDriverWait(self.browser, SECONDS).until(lambda _: self.found(selector))
        return first

    def wait_for(self, selector: str, words: str) -> None:
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self.browser, SECONDS).until(lambda _: any(words in each.text for each in self.found(selector)))

    def give(self, file: Path) -> None:
        self.wait("#picture input[type=file]").send_keys(str(file))

    @property
    def labels(self) -> list[str]:
        self.wait("#classes td")
        return [each.text for each in self.found("#classes td:first-child")]

    @property
    def asked(self) -> set[str]:
        """The hosts of every request since the page was opened."""
        events = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        urls = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        urls += [e["params"]["url"] for e in events if e["method"] == "Network.webSocketCreated"]
        return {urlsplit(url).hostname for url in urls if urlsplit(url).scheme not in ("data", "blob")}


def check_answer(shown: Page, url: str, picture: Path) -> None:
    with Classifier(url) as classifier:
        expected = classifier.classify(picture)
    assert shown.labels == [each.label for each in expected]
    percents = [each.text for each in shown.found("#classes td:last-child")]
    assert percents == [f"{100 * each.probability:.1f} %" for each in expected]
    assert [each.text for each in shown.found("#times td:first-child")] == STEPS
    assert not shown.found("#note .note")


def test_a_picture_is_answered(
    start_page: Callable[..., str],
    chromium: Any,
    colours_server: "TritonServer",  # noqa: F821
    flower: Path,
    outside: socket.socket,
) -> None:
    shown = Page(chromium, start_page(colours_server.grpc_url))
    with Classifier(colours_server.grpc_url) as classifier:
        for _ in range(5):
            classifier.explain(flower)  # warm
    shown.give(flower)
    overlay = shown.wait("#overlay img")
    check_answer(shown, colours_server.grpc_url, flower)
    assert shown.labels[0] == "orange"
    shape = "return [arguments[0].complete, arguments[0].naturalWidth, arguments[0].naturalHeight]"
    assert chromium.execute_script(shape, overlay) == [True, 640, 427]
    # The picture goes, and its answer with it; then another.
    shown.wait("#picture button[aria-label='Remove Image'], #picture button[title='Clear']").click()
    shown.wait("#overlay .empty")
    assert not shown.found("#classes td, #times td")
    shown.give(flower)
    shown.wait("#overlay img")
    check_answer(shown, colours_server.grpc_url, flower)
    Path("runs").mkdir(exist_ok=True)
    Path("runs/page.png").write_bytes(chromium.get_screenshot_as_png())  # docs/img/page.png is one of these
    assert Image.open("runs/page.png").width == 1280
    assert shown.asked == {"127.0.0.1"}
    outside.settimeout(0.5)
    with pytest.raises(TimeoutError):
        outside.accept()  # the page's own process asks no other machine either


def test_behind_a_prefix(
    start_page: Callable[..., str],
    chromium: Any,
    colours_server: "TritonServer",  # noqa: F821
    flower: Path,
) -> None:
    with prefix_proxy("/try", start_page(colours_server.grpc_url, "--root-path", "/try")) as address:
        shown = Page(chromium, address)
        shown.give(flower)
        shown.wait("#overlay img")
        check_answer(shown, colours_server.grpc_url, flower)
    errors = [entry["message"] for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    # Gradio asks for these two without the prefix, and does without.
    assert [error for error in errors if not re.search(r"/(manifest\.json|favicon\.ico)", error)] == []


def test_a_narrow_window_cuts_nothing_off(
    start_page: Callable[..., str],
    phone: Any,
    colours_server: "TritonServer",  # noqa: F821
    flower: Path,
) -> None:
    shown = Page(phone, start_page(colours_server.grpc_url))
    shown.give(flower)
    shown.wait("#times td")
    edge = shown.wait("#times").rect["x"] + shown.wait("#times").rect["width"]
    assert all(each.rect["x"] + each.rect["width"] <= edge < 390 for each in shown.found("#times td"))


def test_bad_pictures_and_a_model_without_a_map(
    start_page: Callable[..., str],
    chromium: Any,
    unexplained_server: "TritonServer",  # noqa: F821
    flower: Path,
    tmp_path: Path,
) -> None:
    address = start_page(unexplained_server.grpc_url, "--max-megabytes", "1", "--concurrency", "1")
    shown = Page(chromium, address)
    shown.give(flower)
    assert "no explained model" in shown.wait("#note .note:not(.error)").text
    assert len(shown.labels) == 5
    assert not shown.found("#overlay img")
    assert [each.text for each in shown.found("#times td:first-child")] == STEPS

    (tmp_path / "broken.jpg").write_bytes(flower.read_bytes()[:3000])
    shown = Page(chromium, address)
    shown.give(tmp_path / "broken.jpg")
    assert shown.wait("#note .error[role=alert]").text.startswith("The server refuses the image: ")
    assert shown.wait("#picture img").size["width"] > 300  # not a strip as wide as the browser's sign for it
    assert not shown.found("#classes td, #overlay img, #times td")

    (tmp_path / "large.jpg").write_bytes(flower.read_bytes() + bytes(2**20))
    shown = Page(chromium, address)
    shown.give(tmp_path / "large.jpg")
    shown.wait_for(".toast-body", "exceed the maximum allowed size of 1.0 Mb")


def test_no_server(start_page: Callable[..., str], chromium: Any, flower: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        shown = Page(chromium, start_page(f"127.0.0.1:{taken.getsockname()[1]}"))
        shown.give(flower)
        note = shown.wait("#note .error[role=alert]")
        words = note.text
    assert note.rect["x"] == shown.wait("#picture").rect["x"]  # one left edge for all
    assert words.startswith("The server cannot be reached")
    assert "Traceback" not in words
    assert not shown.found("#classes td, #overlay img, #times td")


def test_files_that_nobody_dropped_and_a_port_that_is_taken(start_page: Callable[..., str], page_python: Path) -> None:
    """The page reads no file of its machine but uploads; a second page says why it cannot start."""
    address = start_page("127.0.0.1:1")
    with urlopen(f"{address}config") as answer:
        (event,) = json.load(answer)["dependencies"]
    file = {"path": str(Path(__file__)), "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [file], "fn_index": event["id"], "session_hash": "mine"}).encode()
    urlopen(Request(f"{address}gradio_api/queue/join", body, {"Content-Type": "application/json"})).close()
    with urlopen(f"{address}gradio_api/queue/data?session_hash=mine") as answer:
        messages = [json.loads(line[5:]) for line in answer.read().decode().splitlines() if line.startswith("data:")]
    (done,) = [each for each in messages if each["msg"] == "process_completed"]
    assert done["success"] is False
    assert done["output"] == {"error": None}

    command = [str(page_python), "-m", "page", "--port", str(urlsplit(address).port)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert second.stderr.splitlines() == [
        f"page: {urlsplit(address).netloc} is taken, or not this machine's: see --port"
    ]


@contextmanager
def prefix_proxy(prefix: str, target: str) -> Iterator[str]:
    """The address of a proxy that strips `prefix` and answers nothing else, as nginx would be configured."""
    import aiohttp
    from aiohttp import web

    loop, ready, addresses = asyncio.new_event_loop(), threading.Event(), []

    async def forward(request: web.Request) -> web.StreamResponse:
        url = target.rstrip("/") + request.raw_path.removeprefix(prefix)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "transfer-encoding"}
        body = await request.read()
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, url, headers=headers, data=body or None, allow_redirects=False) as answer,
        ):
            kept = {n: v for n, v in answer.headers.items() if n.lower() not in ("transfer-encoding", "connection")}
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=2**25)
        app.router.add_route("*", prefix + "/{rest:.*}", forward)
        runner = web.AppRunner(app, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        addresses.append(f"http://127.0.0.1:{runner.addresses[0][1]}{prefix}/")
        ready.set()
        return runner

    def run() -> None:
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(SECONDS)
    try:
        yield addresses[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
