"""Known faults of tritonclient that this client does not have, and what docs/client.md promises.

Elsewhere: threads, message sizes (test_client_served.py), a deadline for the whole of a request
(test_client_http.py, test_client_grpc.py), channel options (test_client_grpc.py), microseconds (both).
"""

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from asking import request
from stub_grpc import GrpcStub, serve
from stub_http import Handler, HttpStub

import client.testing
from client import _wire_http
from client._address import Address
from client._async_http import AsyncHttpTransport
from client._transport_http import HttpTransport

ROOT = Path(__file__).parents[2]


def test_headers_are_nobody_elses(stub: HttpStub) -> None:
    """tritonclient writes into its caller's dictionary. Here two requests are encoded before either is sent."""
    images, received = [b"one", b"another"], []

    def keep(handler: Handler) -> bool:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        received.append(body[int(handler.headers["Inference-Header-Content-Length"]) + 4 :])
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        return True

    stub.act = keep
    encoded = [_wire_http.encode_request(request(image=image)) for image in images]
    with contextlib.closing(HttpTransport(Address("127.0.0.1", stub.server_address[1]))) as transport:
        for path, headers, body in encoded:
            transport._ask("POST", path, headers, body, "m", 2)
    assert received == images


def test_an_answer_does_not_wait_for_a_poll() -> None:
    """tritonclient's async_infer polls every 10 ms; here the fastest of a hundred answers is below that."""
    stub = HttpStub()

    async def main() -> float:
        transport = AsyncHttpTransport(Address("127.0.0.1", stub.server_address[1]))
        taken = []
        for _ in range(100):
            started = time.perf_counter()
            await transport.infer(request())
            taken.append(time.perf_counter() - started)
        await transport.close()
        return min(taken)

    fastest = asyncio.run(main())
    stub.stop()
    assert fastest < 0.008


UNCLOSED = """
import asyncio, sys
from client import AsyncClassifier, Classifier

grpc, http = sys.argv[1:]
for url, protocol in ((grpc, "grpc"), (http, "http")):
    kept = Classifier(url, protocol)
    assert kept.classify(b"x")
    Classifier(url, protocol).classify(b"x")  # dropped
    Classifier(url, protocol)  # never used
    AsyncClassifier(url, protocol)
    async def main():
        async with AsyncClassifier(url, protocol) as classifier:
            await classifier.classify(b"x")
    asyncio.run(main())
print("done")
"""


def test_teardown_is_silent() -> None:
    """tritonclient closes in __del__, when what it needs may be gone; no class here has a __del__."""
    stub, http = GrpcStub(), HttpStub()
    server, port = serve(stub)
    command = [sys.executable, "-c", UNCLOSED, f"127.0.0.1:{port}", f"127.0.0.1:{http.server_address[1]}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    server.stop(0).wait()
    http.stop()
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)


@pytest.mark.parametrize("source", ["docs/client.md", "client/testing.py"])
def test_the_fake_is_shown_as_it_works(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / source).read_text()
    (example,) = re.findall(
        r"^( *)(from client import Classifier, QueueFullError\n.*?attempt$)", page, re.DOTALL | re.M
    )
    monkeypatch.setattr(client._attempts, "FIRST_PAUSE", 0.001)
    names: dict[str, Any] = {}
    exec("\n".join(line.removeprefix(example[0]) for line in example[1].splitlines()), names)
    assert len(names["fake"].requests) == 2


def test_a_source_that_is_read_once_is_shown_as_it_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """zip(pictures, classify_stream(pictures)) fails for a generator: two threads would read it."""
    page = (ROOT / "docs/client.md").read_text()
    (example,) = re.findall(r"^(    from collections import deque\n.*?popleft\(\), outcome\)$)", page, re.DOTALL | re.M)
    fake = client.testing.FakeTransport(lambda request: client.InvalidImageError(request.image.decode()))
    monkeypatch.setattr(client._session, "open_transports", lambda *_: [fake])
    camera = ((f"name {number}", f"picture {number}".encode()) for number in range(99))
    exec(textwrap.dedent(example), {"Classifier": client.Classifier, "camera": camera})
    assert capsys.readouterr().out.splitlines() == [
        f"name {n} <{8 + len(str(n))} bytes>: picture {n}" for n in range(99)
    ]


@pytest.mark.parametrize("name", [kind.__name__ for kind in client.ClassifierError.__subclasses__()])
def test_what_the_page_says_is_sent_again_is(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client._attempts, "FIRST_PAUSE", 0.001)
    (said,) = re.findall(rf"^\| `{name}` \|.*\| (.+) \|$", (ROOT / "docs/client.md").read_text(), re.M)
    fakes = [client.testing.FakeTransport(getattr(client, name)("no")) for _ in range(2)]
    with client.Classifier(transport=fakes) as classifier, pytest.raises(client.ClassifierError):
        classifier.classify(b"x")
    assert (said != "no") == (sum(len(fake.requests) for fake in fakes) > 1)
