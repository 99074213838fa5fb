"""A run that is cut off anywhere and started again ends in the very same weights."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import time
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console

import models.files
import training.adversarial
import training.finetune
import training.state
from models import ModelConfig, create_model, save_checkpoint
from tests.training.runs import QUIET, Killed, Tiny, assert_same, before_step, die, records
from training.finetune import train
from training.finetune_config import Config
from training.settings import SettingsError
from training.state import StateError, load_state, metrics_of, open_run, save_state

METHODS = {
    "mixed": {"mixup": 0.8, "cutmix": 1.0, "drop_path": 0.2, "random_erasing": 0.5, "rand_augment": "n2-m9"},
    "timm": {"rand_augment": "rand-m9-mstd0.5-inc1", "optimizer": "sgd", "clip_grad": 1.0, "workers": 1},
    "accumulated": {"batch_size": 8, "global_batch_size": 16, "amp": "bf16", "layer_decay": 0.7},
    "fp16": {"amp": "fp16"},  # the scaler's first steps overflow: where it stands is a part of the state
    "head_only": {"head_only": True, "sampler": "class_balanced", "imbalance": 4.0, "batch_size": 8},
    "paco": {"loss": "paco", "label_smoothing": 0.0, "paco_queue": 40, "paco_dim": 16, "sampler": "progressive"},
    "gpaco": {"loss": "gpaco", "paco_queue": 40, "paco_dim": 16, "ema_decay": 0.0},
    "ldam": {"loss": "ldam", "label_smoothing": 0.0, "drw_start": 0.5, "imbalance": 4.0, "batch_size": 8},
    "fast_at": {"adversarial": "fast_at"},
    "advprop": {"adversarial": "advprop", "epsilon": 1.0},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "fp16" else ()) for name in METHODS]
)  # half precision on a CPU takes half a minute
def test_resumed_equals_uninterrupted(name: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off twice: within the first epoch past a saved step, and within the second."""
    changes = {**METHODS[name], "save_every": 2}
    if name == "head_only":
        save_checkpoint(tmp_path / "start", create_model("replknet_nano", 2), ModelConfig("replknet_nano", 2))
        changes["weights"] = tmp_path / "start"
    whole = tiny(tmp_path / "whole", **{**changes, "save_every": 0})
    train(whole, QUIET)
    config = tiny(tmp_path / "cut", **changes)
    total = records(whole.output)[-1]["step"]
    for step in (3, total - 1):
        with monkeypatch.context() as patch:
            before_step(step, die, patch)
            with pytest.raises(Killed):
                train(config, QUIET)
        assert load_state(config.output / "last")["step"] == step - step % 2 or step == total - 1
    train(config, QUIET)
    assert_same(whole.output, config.output)
    assert records(config.output) == records(whole.output)
    assert not (config.output / "last").exists()


@pytest.mark.parametrize("step", [0, 1, 6, 7])
def test_cut_off_at_any_place(
    step: int, tiny: Tiny, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is cut off before the first state, right at the end of an epoch, and right after it."""
    config = tiny(tmp_path / "cut")
    with monkeypatch.context() as patch:
        before_step(step, die, patch)
        with pytest.raises(Killed):
            train(config, QUIET)
    train(config, QUIET)
    assert_same(whole, tmp_path / "cut")


@pytest.mark.parametrize("adversarial", ["none", "fast_at"])
@pytest.mark.parametrize("place", ["count_answers", "save_checkpoint"])
def test_cut_off_in_an_evaluation(
    place: str, adversarial: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its epoch is neither trained again nor logged twice.

    The attacks of an evaluation are those of the uninterrupted run, too.
    """
    config, attacks = tiny(tmp_path / "cut", adversarial=adversarial), []
    original = training.adversarial.pgd
    monkeypatch.setattr(training.adversarial, "pgd", lambda *a, **k: attacks.append(original(*a, **k)) or attacks[-1])
    with monkeypatch.context() as patch:
        patch.setattr(training.finetune, place, die)
        with pytest.raises(Killed):
            train(config, QUIET)
    state = load_state(config.output / "last")
    assert (state["step"], state["evaluated"]) == (6, 0)
    with (config.output / "last/log.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st')  # a line that a full disk has cut
    with monkeypatch.context() as patch:
        before_step(5, die, patch)
        train(config, QUIET)
    train(dataclasses.replace(config, output=tmp_path / "whole"), QUIET)
    assert_same(tmp_path / "whole", tmp_path / "cut")
    if adversarial == "fast_at":  # two batches in each of a run's two evaluations
        assert all(torch.equal(cut, whole) for cut, whole in zip(attacks[-8:-4], attacks[-4:], strict=True))
    assert records(config.output) == records(tmp_path / "whole")


@pytest.mark.parametrize("call", ["copyfile", "rmtree"])
def test_cut_off_while_publishing(call: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is cut off before the checkpoint is in its place, and when half of last/ is gone."""
    config = tiny(tmp_path / "cut", epochs=1)

    def cut_off(path: Path, *_: object) -> None:
        if call == "rmtree":
            (path / "model.safetensors").unlink()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training.state.shutil, call, cut_off)
        with pytest.raises(Killed):
            train(config, QUIET)
    assert (config.output / "model.safetensors").exists() == (call == "rmtree")
    assert train(config, QUIET) == records(config.output)[-1]["top1"]


def kill_in_step_2(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        before_step(2, die, patch)
        with pytest.raises(Killed):
            train(config, QUIET)


def test_other_settings_do_not_resume(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path / "cut", save_every=1)
    kill_in_step_2(config, monkeypatch)
    with pytest.raises(SettingsError, match=r"has lr 0\.004, this one 0\.1: .*--resume never"):
        train(dataclasses.replace(config, lr=0.1), QUIET)
    with pytest.raises(SettingsError, match=r"has imbalance 0\.0, this one 2\.0: "):  # not what follows: class_counts
        train(dataclasses.replace(config, imbalance=2.0), QUIET)
    train(dataclasses.replace(config, lr=0.1, resume="never", epochs=1), QUIET)
    assert len(records(config.output)) == 1


def test_a_run_from_before_an_option_had_it_at_its_default(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off, and finished."""
    config = tiny(tmp_path / "run", save_every=1, epochs=1)
    kill_in_step_2(config, monkeypatch)
    last = config.output / "last"
    state = load_state(last)
    known = json.loads(state["arguments"])
    del known["random_erasing"]
    save_state(last, {**state, "arguments": json.dumps(known)})
    newer = dataclasses.replace(config, random_erasing=0.5)
    refused = pytest.raises(SettingsError, match=r"has random_erasing 0\.0, this one 0\.5: ")
    with refused:
        train(newer, QUIET)
    train(config, QUIET)
    (config.output / "args.json").write_text(json.dumps(known))
    with refused:
        train(newer, QUIET)
    assert train(config, QUIET) == records(config.output)[-1]["top1"]


def test_starting_over_leaves_nothing_of_the_old_run_to_resume(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted before its own first state, it would otherwise resume from the old one."""
    config = tiny(tmp_path / "cut", save_every=1)
    with monkeypatch.context() as patch:
        before_step(8, die, patch)
        with pytest.raises(Killed):
            train(config, QUIET)
    last = config.output / "last"
    assert (last / "model.safetensors").exists()
    with pytest.raises(SettingsError):
        train(dataclasses.replace(config, global_batch_size=10, resume="never"), QUIET)
    assert load_state(last)["step"] == 8, "what is refused has started nothing over"
    with monkeypatch.context() as patch:
        before_step(0, die, patch)
        with pytest.raises(Killed):
            train(dataclasses.replace(config, resume="never"), QUIET)
    assert sorted(path.name for path in last.iterdir()) == ["args.json", "log.jsonl"]


def test_the_data_may_move_but_not_change(
    tiny: Tiny, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(tmp_path / "cut", save_every=1)
    kill_in_step_2(config, monkeypatch)
    moved = dataclasses.replace(config, data=shutil.copytree(config.data, tmp_path / "moved"))
    removed = next((moved.data / "train/0").iterdir())
    content = removed.read_bytes()
    removed.unlink()
    with pytest.raises(SettingsError, match=r"has class_counts\[0\] 32, this one 31: "):
        train(moved, QUIET)
    removed.write_bytes(content)
    other = dataclasses.replace(config, data=shutil.copytree(moved.data, tmp_path / "other"))
    for part in ("train", "val"):  # as many images each, and 1 would go on as what was 0
        (other.data / part / "0").rename(other.data / part / "zero")
    with pytest.raises(SettingsError, match=r"has labels\[0\] '0', this one '1': "):
        train(other, QUIET)
    held_out = next((moved.data / "val/0").iterdir())
    renamed = held_out.rename(held_out.with_stem("zz"))  # as many images of the same classes, in another order
    with pytest.raises(SettingsError, match=r"has image_names\[1\] '(\d+ images), sha256 .*', this one '\1, sha256 "):
        train(moved, QUIET)
    renamed.rename(held_out)
    train(moved, QUIET)
    assert_same(whole, config.output)


def test_a_finished_run_is_left_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    config = tiny(tmp_path / "run", epochs=1)
    accuracy = train(config, QUIET)
    file = config.output / "model.safetensors"
    inode = file.stat().st_ino
    console = Console(file=StringIO(), width=200)
    assert train(config, console) == accuracy
    assert "is finished already: --resume never trains it again" in console.file.getvalue()
    with pytest.raises(SettingsError, match=r"has lr 0\.004, this one 0\.1: .*--resume never"):
        train(dataclasses.replace(config, lr=0.1), QUIET)
    with pytest.raises(
        SettingsError, match=r"has epochs 1, this one 2: .*, or train on from it: --weights .*/run --out"
    ):
        train(dataclasses.replace(config, epochs=2), QUIET)
    other = shutil.copytree(config.data, tmp_path / "other")
    first = next((other / "val/0").iterdir())
    first.rename(first.with_stem("zz"))
    with pytest.raises(SettingsError, match=r"has image_names\[1\] .*: .*name another --output"):
        train(dataclasses.replace(config, data=other), QUIET)  # its accuracy would be that of the first data
    (config.output / "args.json").unlink()
    with pytest.raises(SettingsError, match=r"holds a checkpoint: name another --output, or .*--resume never"):
        train(config, QUIET)
    assert file.stat().st_ino == inode
    assert not (config.output / "last").exists()
    train(dataclasses.replace(config, resume="never"), QUIET)
    assert file.stat().st_ino != inode


@pytest.mark.parametrize("content", [b"half a file", b"not a state", b"My", b".", b"PK\x03\x04", b""])
def test_a_damaged_state_is_named(content: bytes, tmp_path: Path) -> None:
    """Whatever PyTorch makes of it: KeyError, UnpicklingError, struct.error, IndexError, RuntimeError, EOFError."""
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(StateError, match=r"state\.pt is damaged .*--resume never"):
        load_state(tmp_path)
    assert load_state(tmp_path / "nowhere") is None


def test_a_truncated_state_is_refused(tmp_path: Path) -> None:
    """When it is opened: to read beyond the end of a mapped file would kill the process by SIGBUS."""
    save_state(tmp_path, {"learner": {"weight": torch.ones(50_000)}, "step": 3})
    whole = (tmp_path / "state.pt").read_bytes()
    for size in (100, 4096, len(whole) // 2, len(whole) - 4096, len(whole) - 1):
        (tmp_path / "state.pt").write_bytes(whole[:size])
        with pytest.raises(StateError, match=r"state\.pt is damaged .*--resume never"):
            load_state(tmp_path)


def test_damaged_records_of_a_finished_run_are_named(tmp_path: Path) -> None:
    (tmp_path / "args.json").write_text('{"lr": 0.1')
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(ValueError, match=r"args\.json is damaged \(.*: restore it, or remove it"):
        metrics_of(tmp_path, {"lr": 0.1}, {})
    (tmp_path / "args.json").write_text('{"lr": 0.1}')
    with pytest.raises(ValueError, match=r"log\.jsonl is damaged \("):
        metrics_of(tmp_path, {"lr": 0.1}, {})
    (tmp_path / "log.jsonl").write_text('{"top1": 0.1}\n{"top1": 0.2}\n')
    assert metrics_of(tmp_path, {"lr": 0.1}, {}) == {"top1": 0.2}


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_second_run_into_the_folder_of_one_that_trains_is_refused(
    resume: str, tiny: Tiny, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = []

    def again() -> None:
        with pytest.raises(SettingsError, match=r"--output .*run: another run is training there: name another folder"):
            train(tiny(tmp_path / "run", resume=resume), QUIET)
        refused.append(resume)

    with monkeypatch.context() as patch:
        before_step(8, again, patch)
        train(tiny(tmp_path / "run", save_every=4), QUIET)
    assert refused
    assert_same(whole, tmp_path / "run")
    assert records(tmp_path / "run") == records(whole)


def test_a_loader_that_outlives_its_run_does_not_hold_the_folder(tmp_path: Path) -> None:
    begun, begins = os.pipe()
    with open_run(tmp_path / "run", {}, afresh=False):
        child = os.fork()
        if child == 0:
            os.write(begins, b"1")
            time.sleep(60)
            os._exit(0)
        assert os.read(begun, 1) == b"1"
        (tmp_path / "run/last/model.safetensors").touch()
    try:
        with open_run(tmp_path / "run", {}, afresh=False):
            (tmp_path / "run/last/model.safetensors").touch()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_system_without_locks_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(models.files.fcntl, "flock", no_locks)
    with open_run(tmp_path / "run", {"a": 1}, afresh=False):
        (tmp_path / "run/last/model.safetensors").touch()
    assert json.loads((tmp_path / "run/args.json").read_text()) == {"a": 1}
