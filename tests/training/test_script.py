"""How a script ends."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from training.images import DataError
from training.loop import DivergenceError
from training.script import exit_code
from training.settings import SettingsError, one_line


def test_torchrun_is_told_what_ended_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It shows that as the root cause; without a word it shows a bare exit code."""

    def fails() -> None:
        raise DataError("data/train is not a folder")

    told = tmp_path / "error.json"
    assert exit_code("finetune", fails) == 1
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(told))
    assert exit_code("finetune", lambda: None) == 0
    assert not told.exists()
    assert exit_code("finetune", fails) == 1
    assert "DataError: data/train is not a folder" in json.loads(told.read_text())["message"]["message"]
    assert capsys.readouterr().err == 2 * "finetune: data/train is not a folder\n"


def test_a_setting_that_cannot_be_used_has_the_exit_status_of_wrong_usage() -> None:
    def fails(error: ValueError) -> None:
        raise error

    assert exit_code("finetune", lambda: fails(SettingsError("--epochs 0: it must be at least 1"))) == 2
    assert exit_code("finetune", lambda: fails(DataError("0/bad.png cannot be decoded"))) == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "CUDA out of memory.: take a smaller --batch-size (with"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "Killed.: take fewer --workers"),
    ],
)
def test_a_machine_that_is_too_small(error: RuntimeError, said: str, capsys: pytest.CaptureFixture) -> None:
    def fails() -> None:
        raise error

    assert exit_code("finetune", fails, Path("run")) == 1
    if isinstance(error, torch.OutOfMemoryError):
        assert exit_code("explain", fails) == 1  # it has no such options
        assert "explain: CUDA out of memory.: take another --device" in capsys.readouterr().err
        assert exit_code("finetune", fails, Path("run")) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["unforeseen", "DataLoader worker (pid 7) is killed by signal: Segmentation fault."], ids=["any", "crash"]
)
def test_what_nobody_foresaw_has_its_traceback(words: str) -> None:
    def fails() -> None:
        raise RuntimeError(words)

    with pytest.raises(RuntimeError, match=words.partition(" ")[0]):
        exit_code("finetune", fails)


def test_every_error_has_its_traceback_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Python itself raises a ValueError for many a defect."""

    def fails() -> None:
        {}["x"], _ = [1]

    assert exit_code("finetune", fails) == 1
    assert capsys.readouterr().err == "finetune: not enough values to unpack (expected 2, got 1)\n"
    monkeypatch.setenv("WIDEFIELD_TRACEBACK", "1")
    with pytest.raises(ValueError, match="not enough values"):
        exit_code("finetune", fails)
    for error in (DivergenceError("nan"), torch.OutOfMemoryError("GPU"), RuntimeError("DataLoader worker"), OSError()):
        with pytest.raises(type(error)):
            exit_code("finetune", Mock(side_effect=error))


def test_the_line_of_an_error() -> None:
    assert one_line(ValueError()) == "ValueError"
    assert one_line(ValueError("ValueError: as it was said")) == "ValueError: as it was said"
    of_a_worker = (
        "Caught DataError in DataLoader worker process 0.\nTraceback:\n  x\ntraining.images.DataError: a: b is c"
    )
    assert one_line(DataError(of_a_worker)) == "a: b is c"
    assert one_line(OSError("Caught OSError in DataLoader worker process 0.\nOSError: a: b is c")) == "a: b is c"
    assert one_line(DataError(of_a_worker.replace("a: b", "a\nx.jpg: b"))) == "a x.jpg: b is c"
    assert one_line(DataError("a\nx  y.jpg: b is c")) == "a x  y.jpg: b is c"
