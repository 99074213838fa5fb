"""A run that is cut off anywhere and started again ends in the very same weights."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

import training.finetune
import training.loop
from models import load_checkpoint
from training.config import Config
from training.finetune import train
from training.settings import SettingsError
from training.state import StateError, load_state, save_state

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)
Tiny = Callable[..., Config]

METHODS = {
    "mixed": {"mixup": 0.8, "cutmix": 1.0, "drop_path": 0.2, "random_erasing": 0.5, "rand_augment": "n2-m9"},
    "timm": {"rand_augment": "rand-m9-mstd0.5-inc1", "optimizer": "sgd", "clip_grad": 1.0, "workers": 1},
    "accumulated": {"batch_size": 8, "global_batch_size": 16, "amp": "bf16", "layer_decay": 0.7},
    "paco": {"loss": "paco", "label_smoothing": 0.0, "paco_queue": 40, "paco_dim": 16, "sampler": "progressive"},
    "gpaco": {"loss": "gpaco", "paco_queue": 40, "paco_dim": 16, "ema_decay": 0.0},
    "ldam": {"loss": "ldam", "label_smoothing": 0.0, "drw_start": 0.5, "imbalance": 4.0, "batch_size": 8},
    "fast_at": {"adversarial": "fast_at"},
    "advprop": {"adversarial": "advprop", "epsilon": 1.0},
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder)[0].state_dict()


def assert_same(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, f"{len(different)} of {len(ours)} differ, first {different[0]}"


def kill_before_step(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = training.loop.seed_everything

    def seed_or_die(*words: int) -> None:
        if words[2] == number:
            raise Killed
        original(*words)

    monkeypatch.setattr(training.loop, "seed_everything", seed_or_die)


def records(folder: Path) -> list[dict]:
    timings = ("images_per_second", "seconds")
    lines = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in timings} for line in lines]


@pytest.mark.parametrize("name", METHODS)
def test_resumed_equals_uninterrupted(name: str, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off twice: within the first epoch past a saved step, and within the second."""
    changes = {**METHODS[name], "save_every": 2}
    whole = tiny(tmp_path / "whole", **changes)
    train(whole, QUIET)
    config = dataclasses.replace(whole, output=tmp_path / "cut")
    total = records(whole.output)[-1]["step"]
    for step in (3, total - 1):
        with monkeypatch.context() as patch:
            kill_before_step(step, patch)
            with pytest.raises(Killed):
                train(config, QUIET)
        assert load_state(config.output / "last")["step"] == step - step % 2 or step == total - 1
    train(config, QUIET)
    assert_same(whole.output, config.output)
    assert records(config.output) == records(whole.output)
    assert not (config.output / "last").exists()


@pytest.mark.parametrize("step", [0, 1, 6, 7])
def test_cut_off_at_any_place(step: int, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first state, right at the end of an epoch, and right after it."""
    config = tiny(tmp_path / "cut")
    with monkeypatch.context() as patch:
        kill_before_step(step, patch)
        with pytest.raises(Killed):
            train(config, QUIET)
    train(config, QUIET)
    train(tiny(tmp_path / "whole"), QUIET)
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_cut_off_while_publishing(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path / "cut", epochs=1)

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training.loop.shutil, "copyfile", die)
        with pytest.raises(Killed):
            train(config, QUIET)
    assert not (config.output / "model.safetensors").exists()
    assert train(config, QUIET) == records(config.output)[-1]["top1"]


def start(config: Config) -> subprocess.Popen:
    options = ["--data", str(config.data), "--output", str(config.output), "--epochs", str(config.epochs)]
    options += ["--batch-size", "16", "--workers", "0", "--warmup-epochs", "0.5", "--ema-decay", "0.5"]
    command = [sys.executable, "-m", "training.finetune", "--preset", "digits", *options, "--save-every", "1"]
    return subprocess.Popen([*command, "--device", "cpu"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_sigkill(tiny: Tiny, tmp_path: Path) -> None:
    """A real process, a real signal at no chosen moment."""
    config = tiny(tmp_path / "cut", epochs=8, save_every=1)
    process = start(config)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None and not (config.output / "last/state.pt").exists():
        time.sleep(0.05)
    time.sleep(0.3)
    process.kill()
    _, error = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, error
    cut_at = load_state(config.output / "last")["step"]
    assert 0 < cut_at < 48, "it was not in the middle"
    train(config, QUIET)
    train(dataclasses.replace(config, output=tmp_path / "whole", save_every=0), QUIET)
    assert_same(tmp_path / "whole", config.output)


@pytest.mark.parametrize("step", [3, 5])
def test_sigterm_saves(step: int, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within an epoch, and in the step that ends one; the command's exit status says so."""
    config = tiny(tmp_path / "cut")
    original, handler = training.loop.seed_everything, signal.getsignal(signal.SIGTERM)

    def seed_and_stop(*words: int) -> None:
        original(*words)
        if words[2] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training.loop, "seed_everything", seed_and_stop)
        patch.setattr(training.finetune, "parse_arguments", lambda: config)
        assert training.finetune.main() == 143
    assert signal.getsignal(signal.SIGTERM) is handler
    assert load_state(config.output / "last")["step"] == step + 1
    train(config, QUIET)
    train(tiny(tmp_path / "whole"), QUIET)
    assert_same(tmp_path / "whole", config.output)


def test_other_settings_do_not_resume(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny(tmp_path / "cut", save_every=1)
    with monkeypatch.context() as patch:
        kill_before_step(2, patch)
        with pytest.raises(Killed):
            train(config, QUIET)
    with pytest.raises(SettingsError, match=r"has lr 0\.004, this one 0\.1: .*--resume never"):
        train(dataclasses.replace(config, lr=0.1), QUIET)
    train(dataclasses.replace(config, lr=0.1, resume="never", epochs=1), QUIET)
    assert len(records(config.output)) == 1


def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_state(tmp_path, {"step": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StateError, match=r"state\.pt cannot be written .*No space left.*before it is kept"):
            save_state(tmp_path, {"step": 2})
    assert load_state(tmp_path) == {"step": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # a real refusal by the kernel, halfway through the file
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        with pytest.raises(StateError, match="before it is kept"):
            save_state(tmp_path, {"weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_state(tmp_path) == {"step": 1}


def test_ctrl_c_waits_for_the_state_to_be_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(os, "fsync", lambda _: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        save_state(tmp_path, {"step": 3})
    assert load_state(tmp_path) == {"step": 3}
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"half a file")
    with pytest.raises(StateError, match=r"state\.pt is damaged .*--resume never"):
        load_state(tmp_path)
    assert load_state(tmp_path / "nowhere") is None
