"""``classify`` of many images whose server stops answering."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from client import (
    ConnectionFailedError,
    DeadlineExceededError,
    InvalidImageError,
    ModelNotFoundError,
    NotFiniteError,
    ProtocolError,
    _session,
)
from client.commands import _patience, main
from client.commands._results import JsonResults
from client.testing import FakeTransport

COUNT = 12
GONE = ConnectionFailedError("refused")


class Server:
    """Answers `stops` requests, then refuses `refuses` connections, then answers again."""

    def __init__(self, stops: int, refuses: int) -> None:
        self.stops, self.refuses = stops, refuses
        self.answered = self.refused = 0
        self.lock = threading.Lock()

    def __call__(self, request: Any) -> Any:
        with self.lock:
            if self.answered >= self.stops and self.refused < self.refuses:
                self.refused += 1
                return GONE
            self.answered += 1
            return [(request.image.decode(), 0, 0.75)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_patience, "PAUSE", 0.01)
    (tmp_path / "photos").mkdir()
    for number in range(COUNT):
        (tmp_path / "photos" / f"{number:02}.png").write_bytes(f"{number:02}".encode())
    return tmp_path


def classify(monkeypatch: pytest.MonkeyPatch, reply: Any, *arguments: str, output: str = "out.jsonl") -> int:
    monkeypatch.setattr(_session, "open_transports", lambda *given: [FakeTransport(reply)])
    return main(["classify", "photos", "--retries", "0", "--output", output, *arguments])


def rows(kind: str) -> list[str]:
    entries = map(json.loads, Path("out.jsonl").read_text().splitlines())
    return [entry["image"] for entry in entries if kind in entry]


def test_one_that_comes_back_is_waited_for(folder: Path, monkeypatch: Any, capsys: pytest.CaptureFixture) -> None:
    assert classify(monkeypatch, Server(5, 30)) == 0
    assert len(rows("predictions")) == COUNT
    assert capsys.readouterr().err.splitlines() == ["waiting for a server, 60 s at most: refused"]


def test_each_wait_is_told(monkeypatch: Any, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(_patience, "PAUSE", 0.01)
    outcomes = [[], GONE, GONE, [], GONE, []]
    patience = _patience.Patience(lambda item: outcomes.pop(0), 60)
    assert [patience("picture") for _ in range(3)] == [[], [], []]
    assert capsys.readouterr().err.splitlines() == ["waiting for a server, 60 s at most: refused"] * 2


def test_one_that_stays_away_leaves_the_rest_unsent(folder: Path, monkeypatch: Any, capsys: Any) -> None:
    server = Server(5, 10**9)
    started = time.monotonic()
    assert classify(monkeypatch, server, "--wait", "0.3") == 1
    assert 0.3 < time.monotonic() - started < 5
    assert len(rows("predictions")) == 5
    assert len(rows("error")) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-2:] == [
        "1 not answered: see out.jsonl",
        f"stopped: no server answers, {COUNT - 6} not sent: --resume sends them",
    ]
    assert classify(monkeypatch, Server(COUNT, 0), "--resume") == 0
    assert len(rows("predictions")) == COUNT


def test_without_a_wait_the_rest_is_left_at_once(folder: Path, monkeypatch: Any, capsys: Any) -> None:
    assert classify(monkeypatch, server := Server(5, 10**9), "--wait", "0", "--concurrency", "1") == 1
    assert server.refused == 1
    assert "waiting" not in capsys.readouterr().err


def test_one_that_never_answered_is_not_waited_for(folder: Path, monkeypatch: Any) -> None:
    Path("photos/00.png").write_bytes(b"")  # what is wrong with a file is no answer
    started = time.monotonic()
    assert classify(monkeypatch, GONE, "--concurrency", "1") == 1
    assert time.monotonic() - started < 5
    assert rows("error") == ["photos/00.png", "photos/01.png"]
    assert rows("predictions") == []


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize(
    ("refusal", "why"),
    [
        (ModelNotFoundError("the server has no model 'classifer'"), "no server has the model 'classifer'"),
        (ProtocolError("the gateway refuses the caller"), "no server takes the requests"),
    ],
)
def test_what_every_server_refuses_leaves_the_rest_unsent(
    folder: Path, monkeypatch: Any, capsys: pytest.CaptureFixture, refusal: Any, why: str, concurrency: int
) -> None:
    asked = []
    arguments = ["--model", "classifer", "--concurrency", str(concurrency)]
    assert classify(monkeypatch, lambda request: asked.append(request) or refusal, *arguments) == 1
    assert len(asked) <= concurrency
    assert len(rows("error")) == 1
    assert capsys.readouterr().err.splitlines() == [
        "1 not answered: see out.jsonl",
        f"stopped: {why}, {COUNT - 1} not sent: --resume sends them",
    ]


@pytest.mark.parametrize("refusal", [ModelNotFoundError("no such model"), ProtocolError("no classifier")])
def test_what_one_server_has_is_asked_for_still(
    folder: Path, monkeypatch: Any, capsys: pytest.CaptureFixture, refusal: Any
) -> None:
    """One of several servers may lack the model, or be none."""

    def reply(request: Any) -> Any:
        return InvalidImageError("no picture") if request.image == b"00" else refusal

    assert classify(monkeypatch, reply, "--concurrency", "1") == 1
    assert len(rows("error")) == COUNT
    assert "stopped" not in capsys.readouterr().err


def test_an_image_on_which_the_model_overflows_is_one_error(folder: Path, monkeypatch: Any) -> None:
    def reply(request: Any) -> Any:
        if request.image == b"00":
            return NotFiniteError("the model answered 'nan:0:cat', which is no probability")
        return [("cat", 0, 0.75)]

    assert classify(monkeypatch, reply, "--concurrency", "1") == 1
    assert rows("error") == ["photos/00.png"]
    assert len(rows("predictions")) == COUNT - 1


def test_an_image_that_alone_gets_no_answer_holds_up_no_other(folder: Path, monkeypatch: Any) -> None:
    def reply(request: Any) -> Any:
        time.sleep(0.02)
        if request.image == b"09":
            return InvalidImageError("no picture")
        return GONE if request.image == b"03" else [("cat", 0, 0.75)]

    assert classify(monkeypatch, reply, "--wait", "0.05", "--concurrency", "2") == 1
    assert rows("error") == ["photos/03.png", "photos/09.png"]
    assert len(rows("predictions")) == COUNT - 2


def test_a_run_that_ends_with_an_error_ends_the_wait_at_once(folder: Path, monkeypatch: Any, capsys: Any) -> None:
    """Ctrl-C does so too."""
    waiting = threading.Event()

    def full(results: Any, image: str, outcome: Any) -> None:
        waiting.wait(5)
        time.sleep(0.1)
        raise OSError(28, "No space left on device")

    def reply(request: Any) -> Any:
        if request.image == b"00":
            return [("cat", 0, 0.75)]
        waiting.set()
        return GONE

    monkeypatch.setattr(_patience, "PAUSE", 30.0)
    monkeypatch.setattr(JsonResults, "write", full)
    before = set(threading.enumerate())
    assert classify(monkeypatch, reply, "--concurrency", "1") == 1
    assert "No space left" in capsys.readouterr().err
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive()


class Clock:
    """`time.monotonic` for Patience; every request takes 10 s."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(_patience, "time", clock)
    return clock


@pytest.mark.parametrize("stops", [0, 4])
def test_servers_that_accept_and_are_silent_are_not_sent_all(
    folder: Path, monkeypatch: Any, capsys: Any, clock: Clock, stops: int
) -> None:
    asked = []

    def reply(request: Any) -> Any:
        clock.now += 10
        asked.append(request)
        return [("cat", 0, 0.75)] if len(asked) <= stops else DeadlineExceededError("no answer within 10 s")

    assert classify(monkeypatch, reply, "--wait", "25", "--concurrency", "1") == 1
    assert len(rows("predictions")) == stops
    assert len(rows("error")) == len(asked) - stops == 3  # in 30 s, each once
    assert capsys.readouterr().err.splitlines() == [
        "waiting for a server, 25 s at most: no answer within 10 s",
        "3 not answered: see out.jsonl",
        f"stopped: no server answers, {COUNT - stops - 3} not sent: --resume sends them",
    ]


@pytest.mark.parametrize("wait", ["0", "8"])
def test_one_late_image_ends_no_run(folder: Path, monkeypatch: Any, capsys: Any, clock: Clock, wait: str) -> None:
    """Not even if it takes longer than the wait; a second one in a row does."""

    def reply(request: Any) -> Any:
        clock.now += 10
        return DeadlineExceededError("no answer") if request.image in late else [("cat", 0, 0.75)]

    late = {b"00", b"04"}
    assert classify(monkeypatch, reply, "--wait", wait, "--concurrency", "1") == 1
    assert rows("error") == ["photos/00.png", "photos/04.png"]
    assert len(rows("predictions")) == COUNT - 2
    assert ("waiting" in capsys.readouterr().err) == (wait != "0")
    late.add(b"05")
    assert classify(monkeypatch, reply, "--wait", wait, "--concurrency", "1", output="again.jsonl") == 1
    assert f"stopped: no server answers, {COUNT - 6} not sent" in capsys.readouterr().err


def test_servers_that_are_silent_about_some_are_sent_all(folder: Path, monkeypatch: Any, clock: Clock) -> None:
    def reply(request: Any) -> Any:
        clock.now += 10
        return DeadlineExceededError("no answer") if int(request.image) % 3 else [("cat", 0, 0.75)]

    assert classify(monkeypatch, reply, "--wait", "25", "--concurrency", "1") == 1
    assert len(rows("error")) == 2 * len(rows("predictions")) == COUNT * 2 // 3


def test_one_image_in_silence_is_nothing_while_others_are_answered(clock: Clock) -> None:
    def ask(item: str) -> Any:
        if item == "slow":
            assert patience("other") == []
            clock.now += 100
            return DeadlineExceededError("no answer")
        clock.now += 1
        return []

    patience = _patience.Patience(ask, 25)
    for _ in range(2):
        assert isinstance(patience("slow"), DeadlineExceededError)
    assert patience("other") == []


def test_what_is_under_way_at_the_end_is_not_asked_again() -> None:
    def ask(item: str) -> Any:
        patience.end()
        return GONE

    patience = _patience.Patience(ask, 25)
    assert patience("a") is None
