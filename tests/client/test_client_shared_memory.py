"""Images through shared memory, against a real tritonserver: the same answers, and nothing left anywhere."""

import asyncio
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from asking import frozen, request
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client import (
    AsyncClassifier,
    Classifier,
    DeadlineExceededError,
    InferenceError,
    InvalidImageError,
    ProtocolError,
    QueueFullError,
    _shared_memory,
)
from client.__main__ import main
from client._errors import RegionUnknownError
from client._transport import open_transports

pytestmark = pytest.mark.server
HEADER = "triton-grpc-protocol-widefield-shared-memory"


class Regions:
    """What the server has been shown, by its own account."""

    def __init__(self, stub: Any, token: str) -> None:
        self.stub, self.metadata = stub, [(HEADER, token)]

    def sizes(self) -> list[int]:
        status = self.stub.SystemSharedMemoryStatus(
            service_pb2.SystemSharedMemoryStatusRequest(), metadata=self.metadata, timeout=10
        )
        return sorted(region.byte_size for region in status.regions.values())

    def forget(self) -> None:
        """As after a restart."""
        message = service_pb2.SystemSharedMemoryUnregisterRequest()  # without a name: all
        self.stub.SystemSharedMemoryUnregister(message, metadata=self.metadata, timeout=10)

    def await_sizes(self, expected: list[int], seconds: float = 5) -> None:
        until = time.monotonic() + seconds
        while self.sizes() != expected and time.monotonic() < until:
            time.sleep(0.02)
        assert self.sizes() == expected


@pytest.fixture
def regions(tiny_server: "TritonServer") -> Iterator[Regions]:  # noqa: F821
    with grpc.insecure_channel(tiny_server.grpc_url) as channel:
        found = Regions(service_pb2_grpc.GRPCInferenceServiceStub(channel), tiny_server.shared_memory_token)
        found.await_sizes([])
        yield found
        found.await_sizes([])
    assert names() == []


@pytest.fixture
def connect(address: str, protocol: str, tiny_server: "TritonServer") -> Callable[..., Classifier]:  # noqa: F821
    """connect(...) -> a Classifier that uses shared memory."""

    def make(**options: Any) -> Classifier:
        options.setdefault("timeout", 20)
        return Classifier(address, protocol, shared_memory_token=tiny_server.shared_memory_token, **options)

    return make


def names() -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith("widefield-") and len(name) == 42]


MIB = 1 << 20


def test_one_region_serves_one_caller(connect: Callable[..., Classifier], regions: Regions, picture: Any) -> None:
    with connect() as classifier:
        for colour in ("red", "green", "red"):
            assert classifier.classify(picture(colour))[0].label.startswith(colour)
            assert regions.sizes() == [MIB]
        assert names() == []  # the name is gone as soon as the server has it


def test_a_larger_image_takes_the_smaller_ones_place(
    connect: Callable[..., Classifier], regions: Regions, picture: Any
) -> None:
    with connect() as classifier:
        small = classifier.classify(picture("blue", "BMP"))
        large = classifier.classify(picture("blue", "BMP", size=1000))
        assert small[0].label == large[0].label == "blue [cold]"
        assert regions.sizes() == [4 * MIB]
        assert classifier.classify(picture("blue", "BMP")) == small
        assert regions.sizes() == [4 * MIB]


def test_every_request_in_flight_has_its_own(connect: Callable[..., Classifier], regions: Regions) -> None:
    with connect(model="slow", retries=0) as classifier:
        outcomes = classifier.classify_many([b"0.2", b"0.2", b"0.2", b"0.2"], concurrency=4)
        assert {type(outcome) for outcome in outcomes} == {list, QueueFullError}
        assert regions.sizes() == [MIB] * 4
        classifier.classify(b"0")
        assert regions.sizes() == [MIB] * 4  # what was refused is used again


def test_a_server_that_was_restarted(connect: Callable[..., Classifier], regions: Regions, picture: Any) -> None:
    with connect(retries=0) as classifier:
        expected = classifier.classify(picture("red"))
        regions.forget()
        assert classifier.classify(picture("red")) == expected
        assert regions.sizes() == [MIB]


def test_another_server_behind_the_address(
    connect: Callable[..., Classifier], regions: Regions, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a balancer: it does not know what the first was shown."""
    write = _shared_memory.Region.write

    def forgetful(region: Any, image: bytes) -> None:
        write(region, image)
        regions.forget()

    monkeypatch.setattr(_shared_memory.Region, "write", forgetful)
    with connect() as classifier, pytest.raises(RegionUnknownError, match="no balancer's") as caught:
        classifier.classify(picture("red"))
    assert caught.value.attempts == 1


def test_memory_that_is_read_still_is_not_written(connect: Callable[..., Classifier], regions: Regions) -> None:
    with connect(model="slow", retries=0) as classifier:
        with pytest.raises(DeadlineExceededError):
            classifier.classify(b"1.0", timeout=0.4)
        assert len(classifier.classify(b"0")) == 2
        assert regions.sizes() == [MIB] * 2
        time.sleep(1.0)
        with pytest.raises(InferenceError):  # it left too, and the server has done with it
            classifier.classify(b"no number")
        classifier.classify(b"0")
        assert regions.sizes() == [MIB]


def test_cancelling(address: str, protocol: str, tiny_server: Any, regions: Regions) -> None:
    async def run() -> None:
        token = tiny_server.shared_memory_token
        async with AsyncClassifier(address, protocol, model="slow", shared_memory_token=token) as classifier:
            task = asyncio.create_task(classifier.classify(b"0.5"))
            await asyncio.sleep(0.25)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(await classifier.classify(b"0")) == 2
            assert (await classifier.status())[0].ready
            await asyncio.sleep(0.5)

    asyncio.run(run())


def test_asyncio_answers_alike(
    address: str, protocol: str, tiny_server: Any, regions: Regions, connect: Any, picture: Any
) -> None:
    images = [picture(colour) for colour in ("red", "green", "blue", "grey")] * 4 + [b"text"]

    async def run() -> list[Any]:
        token = tiny_server.shared_memory_token
        async with AsyncClassifier(address, protocol, shared_memory_token=token) as classifier:
            return await classifier.classify_many(images)

    *answers, bad = asyncio.run(run())
    with connect() as classifier:
        assert answers == classifier.classify_many(images)[:-1]
    with Classifier(address, protocol) as plain:
        assert answers == plain.classify_many(images)[:-1]
    assert isinstance(bad, InvalidImageError)


def test_closing_with_a_request_in_flight(connect: Callable[..., Classifier], regions: Regions) -> None:
    classifier = connect(model="slow")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(classifier.classify, b"1.0")
        time.sleep(0.4)
        classifier.close()
        with pytest.raises(RuntimeError, match="closed"):
            waiting.result()
    time.sleep(1.0)
    regions.forget()  # this tritonserver refuses to let go of what a request reads


@pytest.mark.parametrize("token", ["wrong", None])
def test_a_wrong_token(
    address: str, protocol: str, picture: Any, token: str | None, tiny_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = token or tiny_server.shared_memory_token[:-1]
    with (
        Classifier(address, protocol, shared_memory_token=wrong) as classifier,
        pytest.raises(ProtocolError, match="same token as the server") as caught,
    ):
        classifier.classify(picture("red"))
    assert caught.value.attempts == 1
    assert names() == []


def test_a_server_that_sees_other_memory(
    connect: Callable[..., Classifier], regions: Regions, picture: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_shared_memory, "FOLDER", str(tmp_path))
    with connect() as classifier, pytest.raises(ProtocolError, match="one /dev/shm") as caught:
        classifier.classify(picture("red"))
    assert caught.value.attempts == 1
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_in_time(
    connect: Callable[..., Classifier], regions: Regions, picture: Any, address: str
) -> None:
    """While it is shown the memory: it may have it, so it is told later that it is no longer needed."""
    with connect(retries=0) as classifier:
        with frozen(int(address.rpartition(":")[2])), pytest.raises(DeadlineExceededError):
            classifier.classify(picture("red"), timeout=0.3)
        assert names() == []
        assert classifier.classify(picture("red"))[0].label == "red: warm"
        assert regions.sizes() == [MIB]


def test_no_memory_left(
    connect: Callable[..., Classifier], regions: Regions, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with connect() as classifier:
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            assert classifier.classify(picture("green"))[0].label == "green"
        with monkeypatch.context() as patch:
            patch.setattr(_shared_memory, "MOST", MIB - 1)
            assert classifier.classify(picture("green"))[0].label == "green"
        assert regions.sizes() == []


def test_interrupted_while_it_is_shown(tiny_server: Any, regions: Regions, monkeypatch: pytest.MonkeyPatch) -> None:
    (transport,) = open_transports(tiny_server.grpc_url, "grpc", None, tiny_server.shared_memory_token)

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(transport._transport, "share", interrupt)
        with pytest.raises(KeyboardInterrupt):
            transport.infer(request(image=b"x"))
    assert names() == []
    transport.close()


def test_two_threads_that_drop_one_region(tiny_server: Any, regions: Regions) -> None:
    memory = _shared_memory.SharedMemory("token")
    region = memory._make(MIB)
    assert region is not None
    region.hide()
    memory._leave(region)
    memory._drop(region)
    memory._drop(region)
    assert memory._bytes == 0


def test_a_client_that_is_killed(
    address: str, protocol: str, tiny_server: Any, regions: Regions, picture: Any, tmp_path: Path
) -> None:
    """It leaves nothing in /dev/shm; what the server was shown stays with that until it ends."""
    (tmp_path / "red.png").write_bytes(picture("red"))
    code = (
        f"import os, signal; from client import Classifier\n"
        f"c = Classifier({address!r}, {protocol!r}, shared_memory_token={tiny_server.shared_memory_token!r})\n"
        f"print(c.classify({str(tmp_path / 'red.png')!r})[0].label, flush=True)\n"
        f"os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (-9, "red: warm\n")
    assert names() == []
    assert regions.sizes() == [MIB]
    regions.forget()


@pytest.mark.parametrize("token", ["", "two words", "line\n", "\u00e4"])
def test_a_token_that_is_none(token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        Classifier(shared_memory_token=token)
    with pytest.raises(ValueError, match="token"):
        AsyncClassifier(protocol="http", shared_memory_token=token)


def test_a_system_without_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_shared_memory, "FOLDER", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="leave the shared-memory token out"):
        Classifier(shared_memory_token="token")


def test_command(
    address: str, protocol: str, tiny_server: Any, regions: Regions, picture: Any, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "red.png").write_bytes(picture("red"))
    token = tmp_path / "token"
    command = ["classify", str(tmp_path / "red.png"), "--url", address, "--protocol", protocol]
    command += ["--shared-memory-token-file", str(token)]
    assert main(command) == 2
    assert f"--shared-memory-token-file {token} cannot be read" in capsys.readouterr().err
    token.write_text(f"{tiny_server.shared_memory_token}\n")
    assert main(command) == 0
    assert "red: warm" in capsys.readouterr().out


def test_threads(connect: Callable[..., Classifier], regions: Regions, picture: Any) -> None:
    """Sizes mixed, so that regions grow and go while others are in use; no answer is another's."""
    images = {(c, s): picture(c, "BMP", size=s) for c in ("red", "green", "blue") for s in (64, 700, 1200)}
    start = threading.Barrier(8)
    wrong: list[object] = []

    def hammer(number: int) -> None:
        start.wait()
        for turn in range(18):
            colour, size = list(images)[(number + turn) % 9]
            label = classifier.classify(images[colour, size])[0].label
            if not label.startswith(colour):
                wrong.append((colour, size, label))

    with connect() as classifier, ThreadPoolExecutor(8) as pool:
        list(pool.map(hammer, range(8)))
        classifier.classify(images["red", 64])
        assert len(regions.sizes()) <= 16
    assert wrong == []
