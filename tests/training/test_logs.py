"""What a run prints, and where."""

from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

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
    """Not as rich's markup or emoji."""
    standard_output().print("runs/exp[v2]: a:b:c :100: [/x]")
    assert capsys.readouterr().out == "runs/exp[v2]: a:b:c :100: [/x]\n"
