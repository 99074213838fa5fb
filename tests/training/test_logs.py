"""What a run prints, and where."""

import itertools
import json
import re
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from rich.console import Console

import training.logs
from models import ModelConfig, create_model, save_checkpoint
from tests.training.runs import Tiny
from training import calibrate, evaluate
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
    now = itertools.count(0.0, 7.0)  # seconds from one look at the clock to the next; a step takes three
    monkeypatch.setattr(training.logs, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    console = Console(file=StringIO(), width=200)
    train(tiny(tmp_path / "run"), console)
    printed = console.file.getvalue().splitlines()
    lines = [line for line in printed if " step " in line]
    shape = r"epoch [12]/2  step \d+/12  loss \d\.\d{4}  lr \d\.\de-\d\d  \d+ images/s  waited \d\d%  \d:\d\d:\d\d left"
    assert all(re.fullmatch(shape, line) for line in lines), lines
    assert [int(re.search(r"step (\d+)", line)[1]) for line in lines] == [1, 3, 4, 6, 7, 8, 9, 11, 12]
    assert lines[1].endswith("  lr 2.7e-03  1 images/s  waited 33%  0:03:51 left"), lines
    assert not any("━" in line for line in printed)
    epochs = [line for line in printed if line.startswith("epoch   ")]
    assert all(line.endswith("  waited 33%") for line in epochs), epochs
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [record["waiting"] for record in log] == [0.333, 0.333]


@pytest.mark.parametrize("script", [evaluate, calibrate])
def test_an_evaluation_shows_on_a_terminal_how_far_it_is(
    script: ModuleType, small_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = ModelConfig("replknet_nano", 3, image_size=32, labels=["0", "1", "4"])
    save_checkpoint(tmp_path / "run", create_model("replknet_nano", 3), config)
    options = ["--checkpoint", str(tmp_path / "run"), "--data", str(small_digits / "val"), "--device", "cpu"]
    options += ["--output", str(tmp_path / "new")] if script is calibrate else []
    for terminal in (True, False):
        console = Console(file=StringIO(), width=80, force_terminal=terminal, _environ={"TERM": "xterm"})
        monkeypatch.setattr(script, "standard_output", lambda shown=console: shown)
        monkeypatch.setattr("sys.argv", ["it", *options])
        script.main()
        assert ("evaluating ━" in re.sub(r"\x1b\[[\d;]*m", "", console.file.getvalue())) == terminal


def test_the_bar_has_the_loss_and_the_rate(tiny: Tiny, tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=80, force_terminal=True, _environ={"TERM": "xterm"})
    train(tiny(tmp_path / "run", epochs=1), console)
    assert re.search(
        r"epoch 1/1  loss \d\.\d{4}  lr \d\.\de-0\d  \d+ images/s .*━.* 6/6 ETA .*0:00:00", console.file.getvalue()
    )
