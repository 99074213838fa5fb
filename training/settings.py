"""The settings that training scripts share, and their record beside the checkpoint."""

import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import timm
import torch

from models.errors import SettingsError
from models.weights import WEIGHTS_FILE

ARGUMENTS_FILE = "args.json"
FREE_TO_CHANGE = frozenset(  # the data's content is compared instead, and images_per_step for both batch sizes
    (
        *("output", "data", "workers", "threads", "device", "resume", "save_every", "tensorboard", "batch_size"),
        *("global_batch_size", "grad_checkpointing", "pictures", "torch", "timm"),
    )
)


Amp: TypeAlias = Literal["off", "bf16", "fp16"]
AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LoopConfig:
    """The settings of `training.loop.fit`."""

    output: Path = Path("runs/run")
    """Folder for the checkpoint; its last/ holds the state of the run in progress"""
    epochs: int = 30
    """Passes over the training images"""
    batch_size: int = 64
    """Images per forward pass of each process"""
    global_batch_size: int = 0
    """Images per optimiser step over all processes, reached by gradient accumulation; 0: --batch-size x processes"""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum 0.9"""
    lr: float = 4e-4
    """Peak learning rate, after the warm-up; a cosine then lowers it to --min-lr. Not scaled by the batch size."""
    min_lr: float | None = None
    """Learning rate at the end of the run; None: 1 % of --lr"""
    warmup_epochs: float = 2.0
    """Epochs in which the learning rate rises linearly from 1 % of --lr to --lr; fractions are allowed"""
    weight_decay: float = 0.05
    """Weight decay of convolutions and linear layers; biases and norms have none"""
    layer_decay: float = 1.0
    """Factor on the learning rate from a group of layers to the next one further from the head; 1: the same for all"""
    clip_grad: float = 0.0
    """Scale all gradients down if their total norm exceeds this; 0: no limit"""
    ema_decay: float = 0.999
    """Decay of the weights' moving average (EMA), which is evaluated and saved, below 1; 0: no average"""
    ema_warmup: bool = True
    """Limit --ema-decay to 1 - t^(-2/3) in step t: a short run's average forgets how it began.
    The limit reaches 0.9999 after a million steps."""
    amp: Amp = "off"
    """Automatic mixed precision; fp16 with a gradient scaler"""
    compile: bool = False
    """Compile the model and its loss with torch.compile"""
    grad_checkpointing: bool = False
    """Save memory: keep only the input of each block and recompute the rest in the backward pass.
    For RepLKNets, and timm models without batch norms."""
    sync_bn: bool = False
    """Compute batch norm statistics over all processes, not in each"""
    seed: int = 0
    """Seed of the initial weights, the order of the images and the augmentation"""
    workers: int = 2
    """Processes that decode images, for each training process; 0: decode in the training process"""
    threads: int = 0
    """CPU threads that compute; 0: PyTorch's own choice, usually one per core, within a container's CPU limit"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """PyTorch device: cpu, cuda or cuda:N; by default a GPU if PyTorch sees one"""
    resume: Literal["auto", "never"] = "auto"
    """auto: resume an interrupted run from OUTPUT/last, by the same settings; keep a finished one.
    never: discard the run in OUTPUT/last and start over."""
    save_every: int = 0
    """Save the run's state every this many optimiser steps, and after each epoch; 0: only after each epoch"""
    tensorboard: bool = False
    """Write TensorBoard event files to OUTPUT/tensorboard (needs the package tensorboard)"""


SHARES = ("label_smoothing", "random_erasing", "drw_start", "paco_momentum", "overfitting_drop", "drop_path")
FROM_ZERO = (
    *("min_lr", "warmup_epochs", "weight_decay", "clip_grad", "mixup", "cutmix", "imbalance"),
    *("logit_tau", "focal_gamma", "paco_alpha", "tau_norm", "logit_adjustment", "step"),
    *("global_batch_size", "save_every", "pictures", "rounds"),
)
FROM_ONE = ("epochs", "batch_size", "steps", "restarts", "count")
RANGES = {
    **dict.fromkeys(FROM_ZERO, (0, math.inf)),
    **dict.fromkeys(FROM_ONE, (1, math.inf)),
    **dict.fromkeys(SHARES, (0, 1)),
    **dict.fromkeys(("workers", "threads"), (0, 1024)),  # many more, and the system refuses to start them
    "epsilon": (0, 255),
    "seed": (0, 2**63 - 1),
}


# The last two have a context around the forward pass, which is gone when the backward pass computes a block again.
NOT_CHECKPOINTED = (("compile", True), ("head_only", True), ("adversarial", "advprop"), ("mask_mode", "sparse"))


def check_ranges(config: Any) -> None:
    """Raise `SettingsError` for a number in a script's settings that would be ignored silently or fail during the run;
    each name has the same range in every script.
    """
    for name, value in vars(config).items():
        option = f"--{name.replace('_', '-')} {value}"
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"{option}: a finite number is needed")
        if name in RANGES and isinstance(value, int | float):
            least, most = RANGES[name]
            if not least <= value <= most:
                allowed = f"at least {least}" if most == math.inf else f"{least} to {most}"
                raise SettingsError(f"{option}: it must be {allowed}")


def check_used(config: Any, defaults: Any, used_by: Mapping[str, tuple[str, tuple[str, ...]]]) -> None:
    """Raise `SettingsError` for a setting that differs from `defaults` and would have no effect.

    `used_by`: setting -> the choice that it depends on, which has one value or several, and the values that use it.
    """
    for name, (choice, users) in used_by.items():
        value, chosen = getattr(config, name), getattr(config, choice)
        several = isinstance(chosen, tuple)
        if value != getattr(defaults, name) and set(users).isdisjoint(chosen if several else (chosen,)):
            option, needed = (text.replace("_", "-") for text in (name, choice))
            shown = f"--no-{option}" if value is False else f"--{option} {value}"
            what = f"{shown} does nothing without --{needed} {' or '.join(users)}"
            raise SettingsError(f"{what}: {'add it' if several else 'choose that'}, or leave it out")


def check_loop(config: LoopConfig, preset: LoopConfig) -> None:
    """Check the ranges and what only a run has: rates, average, crops, activation checkpointing. Raises
    `SettingsError`.

    `preset`: the values of settings that were not given.
    """
    check_ranges(config)
    if config.lr <= 0:
        raise SettingsError(f"--lr {config.lr}: it must be above 0")
    if (config.min_lr or 0) > config.lr:
        raise SettingsError(f"--min-lr {config.min_lr}: it must be at most --lr {config.lr}, from which it falls")
    if not 0 <= config.ema_decay < 1:
        raise SettingsError(f"--ema-decay {config.ema_decay}: it must be at least 0 and below 1")
    if not config.ema_decay and config.ema_warmup != preset.ema_warmup:
        shown = "--ema-warmup" if config.ema_warmup else "--no-ema-warmup"
        raise SettingsError(f"{shown} does nothing with --ema-decay 0, without an average: leave one of them out")
    if not 0 < (area := getattr(config, "min_crop_area", 1.0)) <= 1:
        raise SettingsError(f"--min-crop-area {area}: it must be above 0 and at most 1")
    for name, value in NOT_CHECKPOINTED if config.grad_checkpointing else ():
        if getattr(config, name, None) == value:
            option = f"--{name.replace('_', '-')}" + (f" {value}" if isinstance(value, str) else "")
            raise SettingsError(f"--grad-checkpointing does not go with {option}: leave one of them out")


def autocast(device: str, amp: Amp) -> torch.autocast:
    """Automatic mixed precision on `device` ("cuda:1") for a block; "off" changes nothing."""
    return torch.autocast(torch.device(device).type, AMP_DTYPES.get(amp), enabled=amp != "off")


def accumulation(config: LoopConfig, batch_size: int, processes: int, batches: int) -> int:
    """Return the forward passes of a process in an optimiser step; in an epoch it has `batches` of `batch_size`.

    Raises `SettingsError` for sizes that do not divide, and for a step of more images than an epoch has.
    """
    at_once = batch_size * processes
    if config.global_batch_size > batches * at_once:
        raise SettingsError(
            f"--global-batch-size {config.global_batch_size}: an epoch has {batches} x {at_once} images, so "
            f"{batches * at_once} is the most; the learning rate (--lr {config.lr}) goes with it"
        )
    if config.global_batch_size % at_once:
        raise SettingsError(
            f"--global-batch-size {config.global_batch_size} is no multiple of --batch-size {batch_size} x "
            f"{processes} process{'es' if processes > 1 else ''} = {at_once}"
        )
    return max(1, config.global_batch_size // at_once)


def as_json(config: LoopConfig, **more: Any) -> dict[str, Any]:
    """The settings as JSON values, and the versions."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    return json.loads(json.dumps({**values, "torch": torch.__version__, "timm": timm.__version__, **more}))


def json_object(path: Path, content: bytes) -> dict[str, Any]:
    """Parse `content`, all or a line of the file at `path`. Raises `ValueError` if it is not a JSON object."""
    try:
        values = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or remove it") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, not an object: restore it, or remove it")
    return values


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path, defaults: Mapping[str, Any]) -> None:
    """Raise `SettingsError` for the first setting, or else fact about the data, in which the runs differ.

    A setting that `before` lacks, because it is newer than that run, had its value in `defaults`.
    """
    for name in {**now, **before}:  # settings come before what follows from them and the data, such as class_counts
        was, is_now = before.get(name, defaults.get(name)), now.get(name)
        if name in FREE_TO_CHANGE or was == is_now:
            continue
        if isinstance(was, list) and isinstance(is_now, list) and len(was) == len(is_now):  # say which class
            index = next(i for i, (a, b) in enumerate(zip(was, is_now, strict=True)) if a != b)
            name, was, is_now = f"{name}[{index}]", was[index], is_now[index]
        shown = reprlib.repr if isinstance(is_now, list) else repr
        trained = name == "epochs" and (folder / WEIGHTS_FILE).exists()
        further = f", or train on from it: --weights {folder} --output ANOTHER" if trained else ""
        raise SettingsError(
            f"the run in {folder} has {name} {shown(was)}, this one {shown(is_now)}: "
            f"repeat its settings, name another --output, or start over with --resume never{further}"
        )


def first_of(names: Sequence[str]) -> str:
    """Join the first twenty names for a message, with dots if there are more."""
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def one_line(error: BaseException) -> str:
    """Return the message on one line, without the traceback and error's name that a worker process puts before it."""
    words = str(error)
    if words.startswith("Caught "):
        words = re.split(rf"^(?:[\w.]+\.)?{type(error).__qualname__}: ", words, flags=re.MULTILINE)[-1]
    return " ".join(words.strip().splitlines()) or type(error).__name__
