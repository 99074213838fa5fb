"""SIGKILL, SIGTERM and Ctrl-C, at any place of a run: what is saved, and what the command says."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

import training.finetune
from benchmarks import compare
from tests.training.runs import QUIET, ROOT, Tiny, assert_same, before_step, start, wait_for
from training import attack, evaluate, explain
from training.finetune import train
from training.loaders import _hide_connection_errors
from training.state import load_state, save_state


def test_sigkill(tiny: Tiny, tmp_path: Path) -> None:
    """A real process, a real signal at no chosen moment."""
    config = tiny(tmp_path / "cut", epochs=4, save_every=1)
    process = start(config)
    wait_for(config.output / "last/state.pt", process)
    time.sleep(0.3)
    process.kill()
    _, error = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, error
    cut_at = load_state(config.output / "last")["step"]
    assert 0 < cut_at < 24, "it was not in the middle"
    train(config, QUIET)
    train(dataclasses.replace(config, output=tmp_path / "whole", save_every=0), QUIET)
    assert_same(tmp_path / "whole", config.output)


def test_sigterm_to_the_process_group(tiny: Tiny, tmp_path: Path) -> None:
    """torchrun, `timeout` and systemd send it to the workers too, which the current step still needs."""
    config = tiny(tmp_path / "cut", epochs=100, workers=1)
    process = start(config, workers=1)
    wait_for(config.output / "last/state.pt", process)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error
    assert f"stopped by SIGTERM after step {load_state(config.output / 'last')['step']};" in error
    assert error.count("\n") == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # no worker is left


def test_an_error_does_not_wait_for_the_workers() -> None:
    """Python ends them by SIGTERM where a traceback still holds the loader, and waits until they are gone."""
    script = (
        "from training.loaders import make_loader\n"
        "batches = iter(make_loader([[0]] * 99, 1, train=False, workers=1))\n"
        "next(batches)\n"
        "raise RuntimeError('unforeseen')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.returncode == 1
    assert "RuntimeError: unforeseen" in ended.stderr


@pytest.mark.parametrize("step", [3, 5])
def test_sigterm_saves(step: int, tiny: Tiny, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within an epoch, and in the step that ends one, before it is evaluated; the command's exit status says so."""
    config = tiny(tmp_path / "cut")
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        before_step(step, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        patch.setattr(training.finetune, "parse_arguments", lambda: config)
        assert training.finetune.main() == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    state = load_state(config.output / "last")
    assert (state["step"], state["evaluated"]) == (step + 1, 0)
    assert not (config.output / "last/log.jsonl").read_text()
    train(config, QUIET)
    assert_same(whole, config.output)


def test_ctrl_c_says_what_is_saved(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = tiny(tmp_path)
    monkeypatch.setattr(training.finetune, "parse_arguments", lambda: config)
    for step, words in ((2, "last has no saved state yet"), (8, "last has the last saved state: run it again")):
        with monkeypatch.context() as patch:
            before_step(step, lambda: os.kill(os.getpid(), signal.SIGINT), patch)
            assert training.finetune.main() == 130
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "work"),
    [
        (attack, "attack_checkpoint"),
        (compare, "compare"),
        (evaluate, "evaluate"),
        (explain, "explain_images"),
    ],
)
def test_ctrl_c_is_one_line_where_nothing_is_resumed(
    script: ModuleType, work: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    monkeypatch.setattr(script, work, interrupt)
    options = [] if script is compare else ["--checkpoint", "x", "--data", "x"]
    monkeypatch.setattr("sys.argv", ["it", *options])
    assert script.main() == 130
    assert capsys.readouterr().err == f"\n{work.partition('_')[0]}: interrupted\n"


def test_ctrl_c_waits_for_the_state_to_be_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, {"step": 3})
    assert load_state(tmp_path) == {"step": 3}
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_batch_that_nobody_fetches_is_no_news(capsys: pytest.CaptureFixture) -> None:
    """Ctrl-C may end the main process between a batch's message and its memory, an error in the worker's thread."""
    for error in (ConnectionResetError("Connection reset by peer"), BrokenPipeError("Broken pipe")):
        _hide_connection_errors(type(error), error, None)
    assert capsys.readouterr().err == ""
    _hide_connection_errors(ValueError, ValueError("what"), None)
    assert "ValueError: what" in capsys.readouterr().err
