"""What a run prints, and where."""

import itertools
import re
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import training.logs
from tests.training.runs import Tiny
from training.finetune import train
from training.logs import standard_output


def test_lines_in_a_file_are_not_wrapped(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    train(tiny(tmp_path / "run", epochs=1))
    printed = capsys.readouterr().out
    assert "replknet_nano on 96 images of 3 classes at 32 px, 24 held out, cpu\n" in printed
    (epoch,) = [line for line in printed.splitlines() if line.startswith("epoch   1  loss ")]
    assert "  top-1 " in epoch
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert standard_output().width == 40


def test_a_name_that_is_not_utf8_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    written = BytesIO()
    monkeypatch.setattr("sys.stdout", TextIOWrapper(written, "utf-8", errors="strict"))
    standard_output().print("caf\udce9.png")
    assert written.getvalue() == b"caf\\udce9.png\n"


def test_a_name_is_printed_as_it_is(capsys: pytest.CaptureFixture) -> None:
    """It is not read as rich's markup or emoji."""
    standard_output().print("runs/exp[v2]: a:b:c :100: [/x]")
    assert capsys.readouterr().out == "runs/exp[v2]: a:b:c :100: [/x]\n"


def test_a_file_has_a_line_now_and_then_in_place_of_the_bar(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = itertools.count(0.0, 20.0)  # seconds from one look at the clock to the next; a step takes one
    monkeypatch.setattr(training.logs, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    console = Console(file=StringIO(), width=200)
    train(tiny(tmp_path / "run"), console)
    printed = console.file.getvalue().splitlines()
    lines = [line for line in printed if " step " in line]
    shape = r"epoch [12]/2  step \d+/12  loss \d\.\d{4}  lr \d\.\de-\d\d  \d+ images/s  \d:\d\d:\d\d left"
    assert all(re.fullmatch(shape, line) for line in lines), lines
    assert [int(re.search(r"step (\d+)", line)[1]) for line in lines] == [1, 3, 5, 6, 7, 9, 10, 12]
    assert lines[1].endswith("  lr 2.7e-03  1 images/s  0:05:00 left"), lines
    assert not any("━" in line for line in printed)


def test_the_bar_has_the_loss_and_the_rate(tiny: Tiny, tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=80, force_terminal=True, _environ={"TERM": "xterm"})
    train(tiny(tmp_path / "run", epochs=1), console)
    assert re.search(
        r"epoch 1/1  loss \d\.\d{4}  lr \d\.\de-0\d  \d+ images/s .*━.* 6/6 ETA .*0:00:00", console.file.getvalue()
    )
