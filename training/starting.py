"""What a run starts from: the preset's values under the command line, the config of the checkpoint in --weights."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from models import ModelConfig, load_config
from models.weights import checkpoint_folder
from training.config import Config as FinetuneConfig
from training.pretrain_config import Config as PretrainConfig
from training.settings import SettingsError

DEFAULT_ARCH = "replknet_small"
AnyConfig = TypeVar("AnyConfig", FinetuneConfig, PretrainConfig)


def preset_of(presets: Mapping[str, AnyConfig], usual: str, command_line: list[str] | None) -> AnyConfig:
    """The defaults under `command_line`. A checkpoint folder's architecture stands above the preset's."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default=usual)
    first.add_argument("--weights", type=Path)
    options = first.parse_known_args(command_line)[0]
    preset = presets.get(options.preset, presets[usual])
    return replace(preset, arch="") if checkpoint_folder(options.weights) else preset


def starting_config(arch: str, weights: Path | None) -> ModelConfig:
    """That of the checkpoint folder in `weights`, or beside that file, else of the architecture.

    Raises `SettingsError` for an `arch` that the folder does not hold.
    """
    folder = checkpoint_folder(weights)
    if folder is None:
        return ModelConfig(arch or DEFAULT_ARCH)
    config = load_config(folder)
    if arch not in ("", config.arch):
        raise SettingsError(f"--arch {arch}, but {folder} holds {config.arch}: leave --arch out")
    return config
