"""What a run starts from: a checkpoint folder's architecture, a preset's, or the one that was asked for."""

import json
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from models import ModelConfig, create_model, save_checkpoint
from training import finetune, pretrain
from training.settings import SettingsError

QUIET = Console(quiet=True)
SCRIPTS = pytest.mark.parametrize("script", [finetune, pretrain])


@pytest.fixture(scope="module")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    arch = "timm/vit_tiny_patch16_224"
    save_checkpoint(folder, create_model(arch, 1, 32), ModelConfig(arch, 1, image_size=32))
    return folder


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nano")
    save_checkpoint(folder, create_model("replknet_nano", 1), ModelConfig("replknet_nano", 1, image_size=32))
    return folder


def options(data: Path, output: Path) -> list[str]:
    return ["--data", str(data), "--output", str(output), "--workers", "0", "--device", "cpu", "--image-size", "32"]


@SCRIPTS
@pytest.mark.parametrize("preset", [[], ["--preset", "digits"]])
def test_another_arch_than_the_folders_is_refused(
    script: ModuleType, preset: list[str], nano: Path, small_digits: Path, tmp_path: Path
) -> None:
    command = [*preset, *options(small_digits, tmp_path / "run"), "--weights", str(nano), "--arch", "replknet_small"]
    with pytest.raises(SettingsError, match=f"--arch replknet_small, but {nano} holds replknet_nano: leave --arch out"):
        script.train(script.parse_arguments(command), QUIET)


@SCRIPTS
def test_the_folders_arch_is_above_the_presets_and_is_recorded(
    script: ModuleType, nano: Path, small_digits: Path, tmp_path: Path
) -> None:
    preset = ["simmim", "--mask-patch", "8"] if script is pretrain else ["replknet_31b", "--drop-path", "0"]
    command = ["--preset", *preset, *options(small_digits, tmp_path), "--epochs", "1", "--batch-size", "32"]
    command += ["--global-batch-size", "0", "--warmup-epochs", "0", "--amp", "off"]
    script.train(script.parse_arguments([*command, f"--weights={nano}"]), QUIET)
    assert json.loads((tmp_path / "args.json").read_text())["arch"] == "replknet_nano"


@SCRIPTS
def test_without_a_folder_the_preset_and_the_default_hold(script: ModuleType, tmp_path: Path) -> None:
    config = script.parse_arguments(["--preset", "digits", "--weights", str(tmp_path / "weights.pth")])
    assert config.arch == "replknet_nano"
    made = script.make_model(script.Config(), ["a", "b"]) if script is finetune else script.make_model(script.Config())
    assert made[1].arch == "replknet_small"


def test_only_replknets_are_pre_trained_on(tiny_vit: Path) -> None:
    with pytest.raises(SettingsError, match=f"--weights {tiny_vit} holds timm/vit_tiny_patch16_224: only RepLKNets"):
        pretrain.make_model(pretrain.Config(weights=tiny_vit))
