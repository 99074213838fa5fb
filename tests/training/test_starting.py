"""What a run starts from: a checkpoint folder's architecture, a preset's, or the one that was asked for; its head."""

import dataclasses
import json
import shutil
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
import torch
from rich.console import Console

from models import ModelConfig, WeightsError, create_model, load_checkpoint, save_checkpoint
from tests.training.runs import QUIET, Tiny
from training import finetune, pretrain
from training.script import starting_config
from training.settings import SettingsError

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
def test_a_file_in_a_folder_brings_what_the_folder_brings(script: ModuleType, nano: Path, tmp_path: Path) -> None:
    """This holds if our config.json is beside the file, not another library's."""
    config = script.parse_arguments(["--weights", str(nano / "model.safetensors")])
    config = dataclasses.replace(config, device="cpu")
    made = script.make_model(config, ["a", "b"]) if script is finetune else script.make_model(config)
    assert made[1].arch == "replknet_nano"
    with pytest.raises(SettingsError, match=f"--arch replknet_small, but {nano} holds replknet_nano"):
        starting_config("replknet_small", nano / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    published = tmp_path / "published.safetensors"
    shutil.copy(nano / "model.safetensors", published)
    assert starting_config("replknet_31b", published).arch == "replknet_31b"
    with pytest.raises(SettingsError, match=rf"--arch is needed: no config\.json .* beside {published}"):
        starting_config("", published)
    config = dataclasses.replace(config, weights=published, arch="replknet_small")
    with pytest.raises(WeightsError, match="it belongs to another model, not to replknet_small"):
        script.make_model(config, ["a", "b"]) if script is finetune else script.make_model(config)


def test_a_head_in_a_file_is_kept_if_the_labels_are_the_same(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    head, said = head_of(tiny(tmp_path / "run", weights=trained / "model.safetensors"))
    assert torch.equal(head, load_checkpoint(trained)[0].head.weight)
    assert "model.safetensors: the head is kept\n" in said


@SCRIPTS
def test_without_a_folder_the_preset_and_the_default_hold(script: ModuleType, tmp_path: Path) -> None:
    config = script.parse_arguments(["--preset", "digits", "--weights", str(tmp_path / "weights.pth")])
    assert config.arch == "replknet_nano"
    made = script.make_model(script.Config(), ["a", "b"]) if script is finetune else script.make_model(script.Config())
    assert made[1].arch == "replknet_small"


@SCRIPTS
@pytest.mark.parametrize("option", ["--weights", "--preset"])
def test_an_option_without_its_value_is_named(script: ModuleType, option: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        script.parse_arguments(["--epochs", "1", option])
    error = capsys.readouterr().err
    assert f"Missing value for argument '{option}'" in error
    assert f"python -m {script.__name__} --help" in error


def test_only_replknets_are_pre_trained_on(tiny_vit: Path) -> None:
    with pytest.raises(SettingsError, match=f"--weights {tiny_vit} holds timm/vit_tiny_patch16_224: only RepLKNets"):
        pretrain.make_model(pretrain.Config(weights=tiny_vit))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(1)  # a run's own seed would draw the same head
    config = ModelConfig("replknet_nano", 3, image_size=32, labels=["0", "1", "4"])
    save_checkpoint(folder, create_model("replknet_nano", 3), config)
    return folder


def head_of(config: finetune.Config) -> tuple[torch.Tensor, str]:
    """Return the head after an epoch without learning, and what the run printed."""
    console = Console(file=StringIO(), width=500)
    finetune.train(dataclasses.replace(config, epochs=1, lr=1e-30, ema_decay=0.0), console)
    return load_checkpoint(config.output)[0].head.weight, console.file.getvalue()


def test_a_head_is_kept_if_asked_and_the_run_says_so(tiny: Tiny, trained: Path, tmp_path: Path) -> None:
    """A .pth knows no labels: its head is lost unless --keep-head is given."""
    source, weights = load_checkpoint(trained)[0], tmp_path / "published.pth"
    torch.save({"model": source.state_dict()}, weights)
    for number, (start, keep, kept) in enumerate(
        [(weights, False, False), (weights, True, True), (trained, False, True), (trained, True, True)]
    ):
        head, said = head_of(tiny(tmp_path / str(number), weights=start, keep_head=keep))
        assert torch.equal(head, source.head.weight) == kept
        assert f"from {start}: {'the head is kept' if kept else 'a new head for 3 classes'}\n" in said
    _, said = head_of(tiny(tmp_path / "head_only", weights=trained, head_only=True))
    assert f"from {trained}: a new head for 3 classes\n" in said


def test_a_head_that_cannot_be_kept_is_refused(tiny: Tiny, trained: Path, small_digits: Path, tmp_path: Path) -> None:
    two = tmp_path / "data"
    for part in ("train", "val"):
        for label in ("0", "1"):
            shutil.copytree(small_digits / part / label, two / part / label)
    weights = tmp_path / "published.pth"
    torch.save(load_checkpoint(trained)[0].state_dict(), weights)
    for start in (trained, weights):
        config = tiny(tmp_path / "run", data=two, weights=start, keep_head=True)
        with pytest.raises(SettingsError, match=f"--keep-head: {start} has 3 classes, {two} has 2: .*--no-keep"):
            finetune.train(config, QUIET)
    for changes in ({"weights": None}, {"head_only": True}):
        with pytest.raises(SettingsError, match="--keep-head needs --weights, and --head-only trains a new head"):
            finetune.train(dataclasses.replace(config, **changes), QUIET)
