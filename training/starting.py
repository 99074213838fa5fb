"""What a run starts from: the preset's values under the command line, the config of the checkpoint in --weights."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from models import ModelConfig, checkpoint_config
from models.weights import checkpoint_folder
from training.config import Config as FinetuneConfig
from training.pretrain_config import Config as PretrainConfig

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
    """`checkpoint_config`, else that of the architecture. Raises `WeightsError` as it does."""
    return checkpoint_config(weights, arch) or ModelConfig(arch or DEFAULT_ARCH)
