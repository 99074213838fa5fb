"""Runs that are cut off and compared: what the tests of resumption, of signals and of a full disk share."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

import training.loop
from models import load_checkpoint
from training.finetune_config import Config
from training.randomness import STEP
from training.samples import write_digits

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)
Tiny = Callable[..., Config]


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


def die(*_: object, **__: object) -> None:
    raise Killed


def few_digits(folder: Path, labels: tuple[str, ...]) -> Path:
    """`folder`/{train,val}/LABEL: 32 digits of each label to train on, 8 held out."""
    digits = write_digits(folder / "all")
    for part, count in (("train", 32), ("val", 8)):
        for label in labels:
            (folder / part).mkdir(exist_ok=True)
            shutil.copytree(digits / part / label, folder / part / label)
            for path in sorted((folder / part / label).iterdir())[count:]:
                path.unlink()
    shutil.rmtree(digits)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder)[0].state_dict()


def assert_same(first: Path, second: Path) -> None:
    ours, theirs = weights(first), weights(second)
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different, f"{len(different)} of {len(ours)} differ, first {different[0]}"


def before_step(number: int, act: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Call `act` right before the step `number`, counted from 0."""
    original = training.loop.seed_everything

    def seed(*words: int) -> None:
        if words[1:3] == (STEP, number):
            act()
        original(*words)

    patch.setattr(training.loop, "seed_everything", seed)


def records(folder: Path) -> list[dict]:
    timings = ("images_per_second", "waiting", "seconds")
    lines = (json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in timings} for line in lines]


def start(config: Config, workers: int = 0) -> subprocess.Popen:
    """Start the run as a user does, in its own process group; it saves its state after each step."""
    options = ["--data", str(config.data), "--output", str(config.output), "--epochs", str(config.epochs)]
    options += ["--batch-size", "16", "--workers", str(workers), "--warmup-epochs", "0.5", "--ema-decay", "0.5"]
    command = [sys.executable, "-m", "training.finetune", "--preset", "digits", *options, "--save-every", "1"]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, "--device", "cpu"], cwd=ROOT, start_new_session=True, **streams)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    """Wait until the file exists, or the process has ended."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None and not path.exists():
        time.sleep(0.05)
