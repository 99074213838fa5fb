"""A disk that fills up or loses power: the earlier state is kept, and the run can be resumed."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

import training.finetune
import training.state
from models import ModelConfig, create_model, save_checkpoint
from tests.full_disk import files_up_to
from tests.training.runs import QUIET, Tiny, assert_same
from training.finetune import train
from training.logs import RunLog
from training.settings import LoopConfig
from training.state import StateError, load_state, save_state


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, {"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StateError, match=r"state\.pt cannot be written .*No space left.*before it is kept"):
            save_state(tmp_path, {"step": 2})
    assert load_state(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    with files_up_to(10_000), pytest.raises(StateError, match="before it is kept"):
        save_state(tmp_path, {"weights": torch.zeros(100_000)})
    assert load_state(tmp_path) == {"step": 1}


def test_the_log_of_a_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(50 * '{"epoch": 1}\n')
    with files_up_to(100), pytest.raises(OSError, match=r"log\.jsonl cannot be written \(.*\): what was there is kept"):
        RunLog(LoopConfig(), tmp_path, QUIET, total=9, step=3, epochs=40, main=True)
    assert path.read_text() == 50 * '{"epoch": 1}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.jsonl"]


def test_weights(tmp_path: Path) -> None:
    config = ModelConfig("replknet_nano", 3)
    save_checkpoint(tmp_path, create_model("replknet_nano", 3), config)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with (
        files_up_to(10_000),
        pytest.raises(OSError, match=r"model\.safetensors cannot be written \(.*too large.*\): what was there is kept"),
    ):
        save_checkpoint(tmp_path, create_model("replknet_nano", 3), config)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run(
    tiny: Tiny, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The disk fills up while an epoch's weights are written: one line is printed, and the same command resumes."""
    config = tiny(tmp_path / "cut")
    monkeypatch.setattr(training.finetune, "parse_arguments", lambda: config)
    original = training.finetune.save_checkpoint

    def save(*arguments: object) -> None:
        with files_up_to(10_000):
            original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training.finetune, "save_checkpoint", save)
        assert training.finetune.main() == 1
    error = capsys.readouterr().err
    assert "last/model.safetensors cannot be written" in error
    assert error.count("\n") == 1
    assert training.finetune.main() == 0
    assert_same(whole, config.output)


def test_publishing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path, epochs=1)
    original = shutil.copyfile

    def half(source: Path, target: Path) -> None:
        original(source, target)
        if source.suffix == ".safetensors":
            full()

    with monkeypatch.context() as patch:
        patch.setattr(training.state.shutil, "copyfile", half)
        with pytest.raises(OSError, match=r"model\.safetensors cannot be written .*make room and resume"):
            train(config, QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["args.json", "config.json", "last", "log.jsonl"]
    train(config, QUIET)
    assert not (tmp_path / "last").exists()


def test_what_is_published_is_on_the_disk_before_last_goes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, int]] = []
    original, remove = os.fsync, shutil.rmtree

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        flushed.append((path.name, path.stat().st_ino))
        original(descriptor)

    def rmtree(folder: Path) -> None:
        published = {(path.name, path.stat().st_ino) for path in (tmp_path.iterdir()) if path.is_file()}
        inodes = [inode for _, inode in flushed]
        assert {name for name, _ in published} == {"args.json", "config.json", "log.jsonl", "model.safetensors"}
        assert all(inode in inodes for _, inode in published)
        assert flushed[-1] == (tmp_path.name, tmp_path.stat().st_ino), "the folder, and so the new names"
        remove(folder)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(training.state.shutil, "rmtree", rmtree)
    train(tiny(tmp_path, epochs=1), QUIET)
    assert not (tmp_path / "last").exists()
