"""The start of a run: its settings and initial weights; and the end of a training script: an exit code and, for
whatever stops it, one line on standard error.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
import tyro
from rich.console import Console
from torch.distributed.elastic.multiprocessing.errors import record

from models import ModelConfig, checkpoint_config
from models.checkpoint import checkpoint_folder
from models.cores import usable_cores
from training import distributed
from training.finetune_config import Config as FinetuneConfig
from training.logs import standard_output
from training.loop import DivergenceError, Terminated
from training.pretrain_config import Config as PretrainConfig
from training.samples import WRITERS
from training.settings import SettingsError, one_line
from training.state import STATE_FILE

DEFAULT_ARCH = "replknet_small"
Settings = TypeVar("Settings")
AnyConfig = TypeVar("AnyConfig", FinetuneConfig, PretrainConfig)


def parse_run(
    presets: Mapping[str, AnyConfig],
    usual: str,
    module: str,
    description: str | None,
    arguments: Sequence[str] | None = None,
) -> AnyConfig:
    """Return the preset's values, overridden by the command line. A checkpoint folder's architecture comes first."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", nargs="?")  # `parse` reports a missing value
    first.add_argument("--weights", nargs="?", type=Path)
    options = first.parse_known_args(arguments)[0]
    preset = presets.get(options.preset, presets[usual])
    if checkpoint_folder(options.weights):
        preset = replace(preset, arch="")
    return parse(type(preset), module, description, arguments, preset)


def starting_config(arch: str, weights: Path | None) -> ModelConfig:
    """Return the `checkpoint_config`, else the config of the architecture. Raises as `checkpoint_config`."""
    return checkpoint_config(weights, arch) or ModelConfig(arch or DEFAULT_ARCH)


def begin(
    config: AnyConfig, presets: Mapping[str, AnyConfig], console: Console | None = None
) -> tuple[AnyConfig, Console]:
    """Join torchrun's other processes, write the data of a preset, set threads and seed.

    Returns `config` with this process's device, and a console that is quiet in all processes but the first. Raises
    `SettingsError` for a device that cannot be used, `DataError` if the data's folder holds something else.
    """
    config = replace(config, device=distributed.setup(config.device))
    main = distributed.rank() == 0
    if config.preset in WRITERS and config.data == presets[config.preset].data:
        if main:
            WRITERS[config.preset](config.data)
        distributed.all_sum(torch.zeros(1, device=config.device))  # the others wait for it
    torch.set_num_threads(config.threads or min(torch.get_num_threads(), usable_cores()))
    torch.manual_seed(config.seed)
    return config, (console or standard_output()) if main else Console(quiet=True)


def parse(
    settings: type[Settings],
    module: str,
    description: str | None,
    arguments: Sequence[str] | None = None,
    default: Settings | None = None,
) -> Settings:
    """Parse the command line of `python -m module`; a pipe that closes (`--help | head`) is no error."""
    call = functools.partial(tyro.cli, prog=f"python -m {module}", description=description, args=arguments)
    try:
        return call(settings) if default is None else call(settings, default=default)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest is flushed at the exit
        sys.exit(0)


def exit_code(name: str, run: Callable[[], object], output: Path | None = None) -> int:
    """Call `run` and return 0; 1 for what cannot be trained on or saved, 2 for a setting that cannot be used, 130 after
    Ctrl-C, 143 after SIGTERM.

    The error is reported to torchrun, which shows it as the root cause.

    `output`: the folder of a run that can be resumed. An unexpected error is raised, for its traceback, and with
    WIDEFIELD_TRACEBACK=1 in the environment every error, which may be a defect too.
    """
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        run = record(run)
    try:
        run()
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted{'' if output is None else _saved(output / 'last')}", file=sys.stderr)
        return 130
    except Terminated as reason:
        print(f"{name}: {reason}", file=sys.stderr)
        return 143
    except (ValueError, OSError, RuntimeError) as error:
        remedy = _remedy(error, trains=output is not None)
        foreseen = remedy or isinstance(error, (ValueError, OSError, DivergenceError))
        if not foreseen or os.environ.get("WIDEFIELD_TRACEBACK"):
            raise
        print(": ".join(filter(None, (name, one_line(error), remedy))), file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    finally:
        distributed.shutdown()
    return 0


def _remedy(error: Exception, trains: bool) -> str:
    """Return what to do about the error of a machine that is too small; empty for other errors."""
    if isinstance(error, torch.OutOfMemoryError) and trains:
        return "take a smaller --batch-size (with --global-batch-size the steps stay the same) or --grad-checkpointing"
    if isinstance(error, torch.OutOfMemoryError):
        return "take another --device, or a smaller --batch-size or --count where there is one"
    if str(error).startswith("DataLoader worker") and "Segmentation fault" not in str(error):
        return "take fewer --workers, or give the machine more memory (a container: more /dev/shm)"
    return ""


def _saved(last: Path) -> str:
    saved = (last / STATE_FILE).exists()
    return f"; {last} has " + ("the last saved state: run it again to resume" if saved else "no saved state yet")
