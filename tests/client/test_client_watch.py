"""``python -m client watch``: each image that comes into a folder is answered once."""

import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest
from commands_fakes import CAT

from client import ConnectionFailedError, InferenceError, InvalidImageError, QueueFullError
from client.commands import main, watch
from client.testing import FakeTransport


def watched(
    served: FakeTransport, folder: Path, *arguments: str, looks: list[Callable[[], object]], interval: float = 1.0
) -> int:
    """Runs ``watch``; each of `looks` runs before a look, then Ctrl-C."""
    steps = iter(looks)

    def sleep(seconds: float) -> None:
        assert seconds == interval
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


def test_watch(served: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    Path("in").mkdir()
    write("in/old.png", b"old")()
    looks = [
        nothing,
        write("in/new.png", b"n", 1),
        write("in/new.png", b"ne", 1),  # still being written, within a tick of the clock
        write("in/new.png", b"new", 2),
        nothing,
        nothing,
        write("in/old.png", b"replaced", 3),
        nothing,
        lambda: Path("in/old.png").unlink(),
        nothing,
        write("in/old.png", b"replaced", 3),
        nothing,
    ]
    assert watched(served, Path("in"), looks=looks) == 130
    assert [request.image for request in served.requests] == [b"old", b"new", b"replaced", b"replaced"]
    assert capsys.readouterr().out.splitlines()[0] == "in/old.png\t[cat]\t90.00%"
    assert served.closed == 1


def test_watch_new_only_as_json(served: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    Path("in").mkdir()
    write("in/old.png", b"old")()
    assert (
        watched(served, Path("in"), "--new-only", "--json", looks=[nothing, write("in/new.png", b"new"), nothing])
        == 130
    )
    assert [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()] == ["in/new.png"]


@pytest.mark.parametrize(
    ("arguments", "top", "line"),
    [
        ([], 1, "in/a.png\tcat\t90.00%"),
        (["--top", "2"], 2, "in/a.png\tcat\t90.00%\tdog\t10.00%"),
        (["--csv"], 5, "image,rank,label,index,probability,error,message,request_id"),
    ],
)
def test_watch_top(
    served: FakeTransport, capsys: pytest.CaptureFixture, arguments: list[str], top: int, line: str
) -> None:
    Path("in").mkdir()
    write("in/a.png", b"a")()
    served.reply = lambda request: [("cat", 3, 0.9), ("dog", 4, 0.1)][: request.top]
    assert watched(served, Path("in"), *arguments, looks=[nothing]) == 130
    assert [request.top for request in served.requests] == [top]
    assert capsys.readouterr().out.splitlines()[0] == line


def test_watch_looks_as_often_and_asks_as_many_at_once_as_it_is_told(served: FakeTransport) -> None:
    Path("in").mkdir()
    for number in range(9):
        write(f"in/{number}.png", b"a")()
    together = Barrier(9)
    served.reply = lambda request: CAT if together.wait(10) >= 0 else []
    assert watched(served, Path("in"), "--interval", "7", "--concurrency", "9", looks=[nothing], interval=7.0) == 130
    assert len(served.requests) == 9


def test_watch_loses_nothing_while_the_server_is_away(served: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    Path("in").mkdir()
    write("in/a.png", b"a")()
    write("in/bad.png", b"bad")()

    def away(request: Any) -> Any:
        return InvalidImageError("no picture") if request.image == b"bad" else QueueFullError("full")

    def back() -> None:
        served.reply = lambda request: CAT

    served.reply = away
    assert watched(served, Path("in"), looks=[nothing, nothing, back, nothing]) == 130
    assert [request.image for request in served.requests].count(b"a") == 3
    assert [request.image for request in served.requests].count(b"bad") == 1
    out, err = capsys.readouterr()
    assert out == "in/a.png\t[cat]\t90.00%\n"
    assert err.splitlines() == ["in/bad.png: no picture", "1 put off, first in/a.png: full"]


def test_watch_says_once_that_a_server_is_away_and_names_what_fails_still(
    served: FakeTransport, capsys: pytest.CaptureFixture
) -> None:
    def back() -> None:
        served.reply = lambda request: InferenceError("failed") if request.image == b"bad" else CAT

    Path("in").mkdir()
    served.reply = lambda request: ConnectionFailedError(f"refused at {request.id}")  # as by one server, then another
    away = [write("in/9.png", b"x"), write("in/8.png", b"bad"), write("in/7.png", b"bad"), nothing]
    mended = [write("in/7.png", b"good", 1), nothing, nothing]
    assert watched(served, Path("in"), looks=[*away, back, nothing, *mended]) == 130
    assert [re.sub(r"\S+-\d+$", "ID", line) for line in capsys.readouterr().err.splitlines()] == [
        "1 put off, first in/9.png: refused at ID",
        "2 put off, first in/7.png: failed",
        "1 put off, first in/8.png: failed",
    ]


@pytest.mark.parametrize("unmounted", [False, True])
def test_watch_of_a_folder_that_goes_and_comes_back(
    served: FakeTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, unmounted: bool
) -> None:
    Path("in").mkdir()
    write("in/a.png", b"a")()

    def go() -> None:
        Path("in").rename("away")
        if unmounted:
            Path("in").mkdir()

    def come() -> None:
        if unmounted:
            Path("in").rmdir()
        Path("away").rename("in")
        write("in/b.png", b"b")()

    if unmounted:
        monkeypatch.setattr("os.path.ismount", lambda path: not Path("away").exists())
    assert watched(served, Path("in"), looks=[nothing, go, nothing, come, nothing, go, nothing]) == 130
    assert [request.image for request in served.requests] == [b"a", b"b"]
    assert capsys.readouterr().err.splitlines() == ["in is gone: waiting until it is back"] * 2


def test_watch_asks_what_may_be_read_at_last(
    served: FakeTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As after a chmod, which leaves the time and the size; not by the file's mode: these tests may run as root."""
    locked = {"in/a.png": True}
    read = Path.read_bytes

    def denied(path: Path) -> bytes:
        if locked.get(str(path)):
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr("os.access", lambda path, mode: not locked.get(str(path)))
    monkeypatch.setattr(Path, "read_bytes", denied)
    Path("in").mkdir()
    write("in/a.png", b"a")()
    assert watched(served, Path("in"), looks=[nothing, nothing, locked.clear, nothing, nothing]) == 130
    assert [request.image for request in served.requests] == [b"a"]
    out, err = capsys.readouterr()
    assert out == "in/a.png\t[cat]\t90.00%\n"
    assert err.count("\n") == 1


def test_watch_of_a_folder_within_that_goes_and_comes_back(served: FakeTransport) -> None:
    Path("in/sub").mkdir(parents=True)
    write("in/sub/a.png", b"a")()
    looks = [nothing, nothing, lambda: Path("in/sub").rename("away"), lambda: Path("away").rename("in/sub"), nothing]
    assert watched(served, Path("in"), looks=[*looks, nothing]) == 130
    assert [request.image for request in served.requests] == [b"a"]


def test_watch_forgets_folders_that_are_many(served: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "REMEMBERED", 1)
    looks: list[Callable[[], object]] = [nothing, nothing]
    for name in ("first", "second"):
        Path("in", name).mkdir(parents=True)
        write(f"in/{name}/a.png", name.encode())()
        looks.append(partial(Path("in", name).rename, name))
    looks += [nothing, *(partial(Path(name).rename, f"in/{name}") for name in ("first", "second")), nothing, nothing]
    assert watched(served, Path("in"), looks=looks) == 130
    assert sorted(request.image for request in served.requests) == [b"first", b"first", b"second"]


def test_watch_of_a_file_that_goes(served: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "find_images", lambda folder, unread: [Path("gone.png")])
    assert watch.Arrivals(Path(), False).ready() == []
    assert main(["watch", "no folder"]) == 2
