"""Shared memory that is missing, unknown or not released, against a real tritonserver."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asking import frozen, request
from regions import Regions, names

from client import (
    AsyncClassifier,
    Classifier,
    DeadlineExceededError,
    InferenceError,
    ProtocolError,
    _region,
    _shared_memory,
)
from client._request import Share
from client._wire_http import decode_share

pytestmark = pytest.mark.server


def test_a_server_that_was_restarted(sharing: Callable[..., Classifier], regions: Regions, picture: Any) -> None:
    with sharing(retries=0) as classifier:
        expected = classifier.classify(picture("red"))
        regions.forget()
        assert classifier.classify(picture("red")) == expected
        assert regions.sizes() == [1]


def test_another_server_behind_the_address(
    sharing: Callable[..., Classifier], regions: Regions, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a balancer the next server does not know the regions that the first one has."""
    write = _region.Region.write

    def forgetful(region: Any, image: bytes) -> None:
        write(region, image)
        regions.forget()

    monkeypatch.setattr(_region.Region, "write", forgetful)
    with sharing() as classifier, pytest.raises(ProtocolError, match="no balancer's") as caught:
        classifier.classify(picture("red"))
    assert type(caught.value) is ProtocolError
    assert caught.value.attempts == 1


def test_memory_that_is_read_still_is_not_written(sharing: Callable[..., Classifier], regions: Regions) -> None:
    with sharing(model="slow", retries=0) as classifier:
        with pytest.raises(DeadlineExceededError):
            classifier.classify(b"1.0", timeout=0.4)
        assert len(classifier.classify(b"0")) == 2
        assert regions.sizes() == [1, 1]
        regions.await_sizes([1], lambda: classifier.classify(b"0"))  # it is taken back when the server has done


def test_a_failed_request_leaves_its_region(sharing: Callable[..., Classifier], regions: Regions) -> None:
    with sharing(model="slow", retries=0) as classifier:
        for _ in range(5):
            with pytest.raises(InferenceError):
                classifier.classify(b"no number")
            time.sleep(0.05)
        assert len(regions.sizes()) in (1, 2)  # the last one, and at most one that the server was slow to let go of
        regions.await_sizes([1], lambda: classifier.classify(b"0"))


def test_many_that_were_given_up(address: str, protocol: str, tiny_server: Any, regions: Regions, picture: Any) -> None:
    """Each request unregisters one region at most, so that later requests are not late too."""

    async def run() -> None:
        token = tiny_server.launch.shared_memory_token
        async with AsyncClassifier(address, protocol, retries=0, shared_memory_token=token) as classifier:
            classifier.timeout = 1.0
            with frozen(int(address.rpartition(":")[2])):
                await classifier.classify_many([picture("red")] * 60, concurrency=60)
            classifier.timeout = 20.0
            verbs: list[str] = []
            sharing = classifier._transports[0]._sharing
            share = sharing.share

            async def counted(shared: Share) -> list[str]:
                verbs.append(shared.verb)
                return await share(shared)

            sharing.share = counted
            answers = await classifier.classify_many([picture("red")] * 60, concurrency=60)
            assert [type(answer) for answer in answers] == [list] * 60
            assert verbs.count("unregister") <= 60
            await classifier.classify_many([picture("red")] * 60, concurrency=1)
            assert len(regions.sizes()) <= 60

    asyncio.run(run())


def test_cancelling(address: str, protocol: str, tiny_server: Any, regions: Regions) -> None:
    async def run() -> None:
        token = tiny_server.launch.shared_memory_token
        async with AsyncClassifier(address, protocol, model="slow", shared_memory_token=token) as classifier:
            task = asyncio.create_task(classifier.classify(b"0.5"))
            await asyncio.sleep(0.25)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(await classifier.classify(b"0")) == 2

    asyncio.run(run())


@pytest.mark.parametrize("token", ["wrong", "t0ke"])
def test_a_wrong_token(address: str, protocol: str, picture: Any, token: str) -> None:
    with (
        Classifier(address, protocol, shared_memory_token=token) as classifier,
        pytest.raises(ProtocolError, match=r"another token, or none.*--shared-memory-token-file") as caught,
    ):
        classifier.classify(picture("red"))
    assert caught.value.attempts == 1
    assert names() == []


def test_a_server_that_sees_other_memory(
    sharing: Callable[..., Classifier], regions: Regions, picture: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plenty = SimpleNamespace(f_bavail=10**6, f_blocks=10**6, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda path: plenty)
    monkeypatch.setattr(_region, "FOLDER", str(tmp_path))
    with sharing() as classifier:
        for _ in range(2):
            with pytest.raises(ProtocolError, match="one /dev/shm") as caught:
                classifier.classify(picture("red"))
            assert caught.value.attempts == 1
        assert classifier._transports[0]._memory._bytes == 0
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_in_time(
    sharing: Callable[..., Classifier], regions: Regions, picture: Any, address: str
) -> None:
    """The registration times out: the server may have done it, so the region is unregistered later."""
    with sharing(retries=0) as classifier:
        classifier._transports[0]._memory._met = True
        with frozen(int(address.rpartition(":")[2])), pytest.raises(DeadlineExceededError):
            classifier.classify(picture("red"), timeout=0.3)
        assert names() == []
        assert classifier.classify(picture("red"))[0].label == "red: warm"
        regions.await_sizes([1])


def test_no_memory_left(
    sharing: Callable[..., Classifier], regions: Regions, picture: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    half_full = SimpleNamespace(f_bavail=499, f_blocks=1000, f_frsize=1 << 20)
    for module, name, value in (
        (os, "posix_fallocate", full),
        (os, "statvfs", lambda path: half_full),
        (_shared_memory, "MOST", (1 << 20) - 1),
    ):
        with sharing() as classifier, monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            assert classifier.classify(picture("green"))[0].label == "green"
            assert regions.sizes() == []
            assert classifier._transports[0]._memory._bytes == 0


def test_shown_twice(sharing: Callable[..., Classifier], regions: Regions, picture: Any) -> None:
    """A region is registered twice when a connection breaks after the first time and the transport repeats it."""
    with sharing(retries=0) as classifier:
        transport = classifier._transports[0]._sharing
        share = transport.share

        def twice(shared: Share) -> list[str]:
            if shared.verb == "register":
                share(shared)
            return share(shared)

        transport.share = twice
        assert classifier.classify(picture("red"))[0].label == "red: warm"
        assert regions.sizes() == [1]


def test_interrupted_while_it_is_shown(sharing: Callable[..., Classifier], regions: Regions) -> None:
    with sharing() as classifier:
        (transport,) = classifier._transports
        share = transport._sharing.share

        def interrupt(shared: Share) -> list[str]:
            if shared.verb == "register":
                raise KeyboardInterrupt
            return share(shared)

        transport._sharing.share = interrupt
        with pytest.raises(KeyboardInterrupt):
            transport.infer(request(image=b"x"))
        assert names() == []


CLIENT = """
import os, signal
from client import Classifier, _region
def stop(region): os.kill(os.getpid(), signal.SIGKILL)
if {hiding}: _region.Region.hide = stop
classifier = Classifier({address!r}, {protocol!r}, shared_memory_token={token!r})
print(classifier.classify({image!r})[0].label, flush=True)
if {killed}: os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("end", ["killed", "killed while it shows a region", "without close"])
def test_what_a_client_leaves_the_next_takes_back(
    address: str,
    protocol: str,
    tiny_server: Any,
    regions: Regions,
    picture: Any,
    tmp_path: Path,
    sharing: Any,
    end: str,
) -> None:
    (tmp_path / "red.png").write_bytes(picture("red"))
    told = {"address": address, "protocol": protocol, "token": tiny_server.launch.shared_memory_token}
    told |= {"image": str(tmp_path / "red.png"), "killed": end == "killed", "hiding": "shows" in end}
    ended = subprocess.Popen([sys.executable, "-c", CLIENT.format(**told)], stdout=subprocess.PIPE, text=True)
    said, _ = ended.communicate(timeout=60)
    assert ended.returncode == (0 if end == "without close" else -signal.SIGKILL)
    assert said == ("" if "shows" in end else "red: warm\n")
    assert regions.sizes() == [1]
    assert len(names(ended.pid)) == ("shows" in end)
    with sharing() as classifier:
        classifier.classify(picture("red"))
        assert regions.sizes() == [1]
        assert names(ended.pid) == []


def test_only_what_ended_here_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    here, other = _region._namespace(), "1"
    tail = "0" * 32
    name = f"widefield-{here}-{ended.pid}-{tail}"
    kept = [
        f"widefield-{here}-{os.getpid()}-{tail}",
        f"widefield-{other}-{ended.pid}-{tail}",
        f"{name}0",
        "other",
        tail,
    ]
    assert _region.left_behind([name, *kept]) == [name]
    monkeypatch.setattr(_region, "FOLDER", str(tmp_path))
    for each in (name, *kept):
        (tmp_path / each).touch()
    _region.remove_left_behind()
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


def test_another_user_cannot_read_a_region() -> None:
    region = _region.Region(1)
    mode = os.stat(region._path).st_mode
    region.hide()
    region.close()
    assert mode & 0o777 == 0o600


@pytest.mark.parametrize("token", ["", "two words", "line\n", "\u00e4", b"token"])
def test_a_token_that_is_none(token: Any) -> None:
    with pytest.raises(ValueError, match="token"):
        Classifier(shared_memory_token=token)
    with pytest.raises(ValueError, match="token"):
        AsyncClassifier(protocol="http", shared_memory_token=token)


def test_a_system_without_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_shared_memory, "FOLDER", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="leave the shared-memory token out"):
        Classifier(shared_memory_token="token")


@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'[{"size": 1}]', b"null", b"[" * 100_000])
def test_a_list_that_is_none(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="not a list of regions"):
        decode_share(200, body, Share("status", "", 0, "t", 1), "http://server")
