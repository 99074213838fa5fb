"""Pictures, a fake transport and a small real server for the client's tests."""

import io
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from commands_fakes import CAT
from PIL import Image
from regions import Regions, names
from stub_http import HttpStub
from tiny_repository import write_tiny_repository
from tritonclient.grpc import service_pb2_grpc

from client import Classifier, ClassifierError, Request, _session
from client.testing import AsyncFakeTransport, FakeTransport

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220), "grey": (128, 128, 128)}


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """picture("red") -> encoded bytes of one colour."""

    def make(colour: str = "red", kind: str = "PNG", size: int = 64) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (size, size), COLOURS[colour]).save(buffer, kind)
        return buffer.getvalue()

    return make


class Echo(FakeTransport):
    """Answers with the image's bytes as the label; `b"!..."` is refused. `before` runs first, in that thread."""

    def __init__(self) -> None:
        super().__init__(self.echo)
        self.before: Callable[[bytes], object] = lambda image: None

    @property
    def calls(self) -> list[tuple[str, bytes, int]]:
        return [(request.model, request.image, request.top) for request in self.requests]

    def echo(self, request: Request) -> list[tuple[str, int, float]]:
        self.before(request.image)
        if request.image.startswith(b"!"):
            raise ClassifierError("refused")
        label = request.image.decode()
        return [(label, 0, 0.75), (f"second of {label}", 1, 0.25)]


@pytest.fixture
def fake() -> Echo:
    return Echo()


@pytest.fixture
def stub() -> Iterator[HttpStub]:
    server = HttpStub()
    yield server
    server.stop()


@pytest.fixture
def unreachable() -> Iterator[int]:
    """A port that neither accepts nor refuses: its queue of connections is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        time.sleep(0.05)
        yield listener.getsockname()[1]


@pytest.fixture(scope="session")
def tiny_server(serving: Callable[..., Any]) -> Iterator["TritonServer"]:  # noqa: F821
    """A real tritonserver with the tiny repository: `classifier` and `slow`; it has a `shared_memory_token`."""
    launch = {"shared_memory_token": "t0ken", "probe_interval": 3600}  # no canary among the requests that are counted
    with serving(write_tiny_repository, launch=launch) as server:
        yield server


@pytest.fixture(params=["grpc", "http"])
def protocol(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def address(protocol: str, tiny_server: "TritonServer") -> str:  # noqa: F821
    return tiny_server.grpc_url if protocol == "grpc" else tiny_server.http_url


@pytest.fixture
def sharing(address: str, protocol: str, tiny_server: "TritonServer") -> Callable[..., Any]:  # noqa: F821
    """sharing(...) -> a Classifier that uses shared memory."""
    token = tiny_server.launch.shared_memory_token
    return lambda **options: Classifier(address, protocol, shared_memory_token=token, **{"timeout": 20, **options})


@pytest.fixture
def regions(tiny_server: "TritonServer") -> Iterator[Regions]:  # noqa: F821
    """The tiny server's regions; fails if any are left at the end, there or in /dev/shm."""
    with grpc.insecure_channel(tiny_server.grpc_url) as channel:
        found = Regions(service_pb2_grpc.GRPCInferenceServiceStub(channel), tiny_server.launch.shared_memory_token)
        found.forget()
        yield found
        assert (found.sizes(), names()) == ([], [])


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTransport:
    monkeypatch.chdir(tmp_path)
    fake = FakeTransport(CAT)
    monkeypatch.setattr(_session, "open_transports", lambda *arguments: [fake])
    return fake


@pytest.fixture
def async_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncFakeTransport:
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(b"a")
    fake = AsyncFakeTransport(CAT)
    monkeypatch.setattr(_session, "open_transports", lambda *arguments: [fake])
    return fake
