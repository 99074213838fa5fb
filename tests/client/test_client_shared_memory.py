"""Images through shared memory, against a real tritonserver: the same answers, and nothing left anywhere."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from asking import frozen, request
from regions import Regions, names

from client import (
    Answer,
    AsyncClassifier,
    Classifier,
    ClassifierError,
    DeadlineExceededError,
    InvalidImageError,
    QueueFullError,
    _shared_memory,
)
from client.__main__ import main
from client._attempts import drive
from client._request import Share

pytestmark = pytest.mark.server


def test_one_region_serves_one_caller(sharing: Callable[..., Classifier], regions: Regions, picture: Any) -> None:
    with sharing() as classifier:
        for colour in ("red", "green", "red"):
            assert classifier.classify(picture(colour))[0].label.startswith(colour)
            assert regions.sizes() == [1]
        assert names() == []  # the name is gone as soon as the server has it


def test_regions_are_as_large_as_the_images(sharing: Callable[..., Classifier], regions: Regions, picture: Any) -> None:
    with sharing() as classifier:
        asked = ((64, [1], 1), (1000, [1, 4], 4), (64, [1, 4], 1), (1500, [1, 4, 8], 8), (800, [1, 4, 8], 4))
        for size, expected, used in asked:
            assert classifier.classify(picture("blue", "BMP", size=size))[0].label == "blue [cold]"
            assert regions.sizes() == expected
            assert classifier._transports[0]._memory._idle[-1].size == used << 20
    with sharing() as classifier:
        for size, expected in ((1500, [8]), (64, [1, 8]), (800, [1, 8])):  # one that is much too large waits for others
            classifier.classify(picture("blue", "BMP", size=size))
            assert regions.sizes() == expected


def test_the_largest_make_room(
    sharing: Callable[..., Classifier], regions: Regions, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shared_memory, "MOST", 5 << 20)
    with sharing() as classifier:

        def ask(size: int) -> None:
            assert classifier.classify(picture("grey", "BMP", size=size))[0].label == "naïve grey"

        for size, expected in ((64, [1]), (1000, [1, 4]), (700, [1, 4])):
            ask(size)
            assert regions.sizes() == expected
        ask(1500)  # too large for all of it: it goes in its message
        regions.await_sizes([], lambda: ask(1500))


class LettingGo:
    """Replaces a transport; its server unregisters at once. `verbs` records the shares; an image raises `error`."""

    def __init__(self, error: ClassifierError | None = None) -> None:
        self.error, self.verbs = error, list[str]()

    def __call__(self, step: Any) -> Any:
        if isinstance(step, Share):
            self.verbs.append(step.verb)
            return []
        if self.error is not None:
            raise self.error
        return Answer([])


def test_the_largest_makes_room_and_what_others_left_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shared_memory, "MOST", 5 << 20)
    memory, server = _shared_memory.SharedMemory("token"), LettingGo()
    for size in (1, 1 << 20, 1 << 21):  # and a length of 4 bytes
        drive(memory.infer(request(image=bytes(size))), server)
    assert [region.size >> 20 for region in memory._idle] == [1, 4]
    assert server.verbs == ["status", "register", "register", "unregister", "register"]
    drive(memory.close(), server)
    assert memory._bytes == 0


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (InvalidImageError("no picture"), []),
        (QueueFullError("full"), []),
        (DeadlineExceededError("late"), ["unregister", "register"]),  # it may read it still
    ],
)
def test_a_region_that_the_server_has_done_with_is_used_again(error: ClassifierError, again: list[str]) -> None:
    memory, server = _shared_memory.SharedMemory("token"), LettingGo(error)
    for _ in range(2):
        with pytest.raises(type(error)):
            drive(memory.infer(request()), server)
    assert server.verbs == ["status", "register", *again]
    drive(memory.close(), server)


def test_every_request_in_flight_has_its_own(sharing: Callable[..., Classifier], regions: Regions) -> None:
    with sharing(model="slow", retries=0) as classifier:
        outcomes = classifier.classify_many([b"0.2", b"0.2", b"0.2", b"0.2"], concurrency=4)
        assert {type(outcome) for outcome in outcomes} == {list, QueueFullError}
        sizes = regions.sizes()
        assert [1] * 2 <= sizes <= [1] * 4  # one that is refused at once may have done before the last begins
        classifier.classify(b"0")
        assert regions.sizes() == sizes  # what was refused is used again


def test_asyncio_answers_alike(
    address: str, protocol: str, tiny_server: Any, regions: Regions, sharing: Any, picture: Any
) -> None:
    images = [picture(colour) for colour in ("red", "green", "blue", "grey")] * 4 + [b"text"]

    async def run() -> list[Any]:
        token = tiny_server.launch.shared_memory_token
        async with AsyncClassifier(address, protocol, shared_memory_token=token) as classifier:
            assert (await classifier.status())[0].ready
            return await classifier.classify_many(images)

    *answers, bad = asyncio.run(run())
    with sharing() as classifier:
        assert answers == classifier.classify_many(images)[:-1]
    with Classifier(address, protocol) as plain:
        assert answers == plain.classify_many(images)[:-1]
    assert isinstance(bad, InvalidImageError)


def test_threads(sharing: Callable[..., Classifier], regions: Regions, picture: Any) -> None:
    """Mixed sizes, so that regions come and go while others are in use; no answer goes to another request."""
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

    with sharing() as classifier, ThreadPoolExecutor(8) as pool:
        list(pool.map(hammer, range(8)))
        memory = classifier._transports[0]._memory
        assert memory._bytes == sum(each.size for each in memory._idle)
        assert len(regions.sizes()) == len(memory._idle) <= 24
    assert wrong == []


FORKS = """
import os, sys
from client import Classifier
address, red, green = sys.argv[1:]
with Classifier(address, "http", shared_memory_token="t0ken") as classifier:
    memory = classifier._transports[0]._memory
    classifier.classify(red)
    (first,) = memory._idle
    child = os.fork()
    colour = red if child else green
    for _ in range(20):
        assert classifier.classify(colour, 1)[0].label.startswith("red" if child else "green")
    (used,) = memory._idle
    assert (used.name == first.name) == bool(child)
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_process_has_regions_of_its_own(
    tiny_server: Any, regions: Regions, picture: Any, tmp_path: Path
) -> None:
    """Two processes that shared a region got answers for each other's images."""
    files = [tmp_path / f"{colour}.png" for colour in ("red", "green")]
    for file in files:
        file.write_bytes(picture(file.stem))
    subprocess.run([sys.executable, "-c", FORKS, tiny_server.http_url, *map(str, files)], check=True)


def test_closing_right_after_the_answer(sharing: Callable[..., Classifier], regions: Regions, picture: Any) -> None:
    """The server answers a little before it releases the region."""
    for _ in range(40):
        with sharing() as classifier:
            classifier.classify(picture("red"))
    assert regions.sizes() == []


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `close` wait longer, for a server that is slow on a busy machine."""
    monkeypatch.setattr("client._shared_memory.CLOSE_SECONDS", 10.0)


@pytest.mark.usefixtures("patient")
def test_closing_with_requests_in_flight(sharing: Callable[..., Classifier], regions: Regions) -> None:
    classifier = sharing(model="slow")
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(classifier.classify, b"0.3") for _ in range(2)]
        time.sleep(0.2)
        closing = threading.Thread(target=classifier.close)
        started = time.monotonic()
        closing.start()
        for each in waiting:
            with pytest.raises(RuntimeError, match="closed"):
                each.result()
        assert time.monotonic() - started < 0.2  # who waits learns it at once
        closing.join()
    classifier.close()  # twice does no harm


@pytest.mark.usefixtures("patient")
def test_asyncio_closing_with_a_request_in_flight(
    address: str, protocol: str, tiny_server: Any, regions: Regions
) -> None:
    async def run() -> None:
        token = tiny_server.launch.shared_memory_token
        classifier = AsyncClassifier(address, protocol, model="slow", shared_memory_token=token)
        task = asyncio.create_task(classifier.classify(b"0.3"))
        await asyncio.sleep(0.2)
        await classifier.close()
        with pytest.raises(RuntimeError, match="closed"):
            await task

    asyncio.run(run())


def test_closing_while_the_server_stands_still(
    sharing: Callable[..., Classifier], regions: Regions, picture: Any, address: str
) -> None:
    with sharing() as classifier:
        classifier.classify(picture("red"))
        with frozen(int(address.rpartition(":")[2])):
            started = time.monotonic()
            classifier.close()
            assert time.monotonic() - started < 0.9
    regions.forget()  # it may not have heard it


def test_closing_that_is_cut_off(address: str, protocol: str, tiny_server: Any, regions: Regions, picture: Any) -> None:
    async def run() -> None:
        token = tiny_server.launch.shared_memory_token
        classifier = AsyncClassifier(address, protocol, shared_memory_token=token)
        await classifier.classify(picture("red"))
        with frozen(int(address.rpartition(":")[2])), pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(classifier.close(), 0.2)
        (transport,) = classifier._transports
        assert transport._transport._closed
        assert transport._sharing._closed

    asyncio.run(run())
    regions.forget()


def test_command(
    address: str, protocol: str, tiny_server: Any, regions: Regions, picture: Any, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "red.png").write_bytes(picture("red"))
    token = tmp_path / "token"
    command = ["classify", str(tmp_path / "red.png"), "--url", address, "--protocol", protocol]
    command += ["--shared-memory-token-file", str(token)]
    assert main(command) == 2
    assert f"--shared-memory-token-file {token} cannot be read" in capsys.readouterr().err
    token.write_text(f"{tiny_server.launch.shared_memory_token}\n")
    assert main(command) == 0
    assert "red: warm" in capsys.readouterr().out
