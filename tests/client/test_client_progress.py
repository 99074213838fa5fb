"""The bar of ``classify``, ``explain`` and ``bench``: where somebody sees it."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands_fakes import CAT
from PIL import Image

from client import Answer
from client.commands import main
from client.commands._results import TableResults
from client.testing import AsyncFakeTransport, FakeTransport


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: terminal  # type: ignore[method-assign]


def explained(request: Any) -> Any:
    return Answer(CAT, np.zeros((2, 2), np.float32)) if request.class_map else CAT


@pytest.mark.parametrize(
    ("arguments", "terminals", "shown"),
    [
        (["classify", "a.png", "b.png"], "both", True),
        (["classify", "a.png"], "both", False),
        (["classify", "a.png", "b.png"], "none", False),
        (["classify", "a.png", "b.png", "--json"], "stderr", True),
        (["classify", "a.png", "b.png", "--csv"], "stderr", True),
        (["classify", "a.png", "b.png", "--json"], "both", False),  # the lines show how far it is
        (["classify", "a.png", "b.png", "--json", "--output", "out.jsonl"], "both", True),
        (["explain", "a.png", "b.png"], "both", True),
        (["explain", "a.png", "b.png", "--json"], "stderr", True),
        (["explain", "a.png", "b.png", "--json"], "both", False),
    ],
)
def test_bar(
    served: FakeTransport, arguments: list[str], terminals: str, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(name)
    served.reply = explained
    out, err = Stream(terminals == "both"), Stream(terminals != "none")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(arguments) == 0
    words = {"classify": "classifying", "explain": "explaining"}[arguments[0]]
    assert (words in err.getvalue()) == shown
    assert words not in out.getvalue()
    if "--json" in arguments:
        written = Path("out.jsonl").read_text() if "--output" in arguments else out.getvalue()
        assert [json.loads(line)["image"] for line in written.splitlines()] == ["a.png", "b.png"]


@pytest.mark.parametrize("command", ["classify", "explain"])
def test_ctrl_c_keeps_the_answers_and_ends_the_bar_before_them(
    served: FakeTransport, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(request: Any) -> Any:
        if len(served.requests) == 3:
            raise KeyboardInterrupt
        return explained(request)

    def finish(results: TableResults) -> None:
        err.truncate(0)
        real(results)

    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(name)
    served.reply = reply
    real, out, err = TableResults.finish, Stream(True), Stream(True)
    monkeypatch.setattr(TableResults, "finish", finish)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main([command, "a.png", "b.png", "c.png", "--concurrency", "1"]) == 130
    assert [name in out.getvalue() for name in ("a.png", "b.png", "c.png")] == [True, True, False]
    assert err.getvalue() == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_bar_of_the_time(async_served: AsyncFakeTransport, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    out, err = Stream(False), Stream(terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["bench", "a.png", "--seconds", "0.6", "--warm-up", "0.1", "--rate", "20", "--json"]) == 0
    assert ("measuring" in err.getvalue()) == terminal
    assert json.loads(out.getvalue())["answered"] > 0
