"""Checkpoints written and read back: both files whole or the old ones, and configurations that are refused."""

import json
import os
import stat
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nano import State, nano, same
from safetensors import safe_open
from timm.utils.model import freeze_batch_norm_2d
from torch import nn

from models import (
    ARCHITECTURES,
    ModelConfig,
    WeightsError,
    classifier_config,
    create_model,
    load_checkpoint,
    load_config,
    load_weights,
    save_checkpoint,
)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    model = nano(3).to(memory_format=torch.channels_last)
    labels = ["a", "b", "c", "d", "é"]
    preparation = {"image_size": np.int64(48), "crop_pct": 1.0, "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}
    config = ModelConfig("replknet_nano", np.int64(5), labels=labels, **preparation)
    folder = tmp_path / "new" / "folder"
    umask = os.umask(0o026)
    try:
        save_checkpoint(folder, model, config)
    finally:
        os.umask(umask)
    loaded, loaded_config = load_checkpoint(str(folder))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o640] * 2, "as the umask has them"
    assert loaded_config == config
    assert same(loaded.state_dict(), model.state_dict())
    assert not loaded.training
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}, "which other libraries ask for"
    assert set(json.loads((folder / "config.json").read_text())) == {
        *("arch", "num_classes", "image_size", "crop_pct", "interpolation", "mean", "std", "labels", "crop_mode")
    }


def test_a_config_from_before_crop_modes_is_cropped_as_it_was(tmp_path: Path) -> None:
    config = ModelConfig("timm/convnext_tiny.fb_in22k_ft_in1k_384", 5)
    values = {name: value for name, value in asdict(config).items() if name != "crop_mode"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert load_config(tmp_path) == replace(config, crop_mode="center")


@pytest.mark.parametrize(
    ("arch", "sizes", "message"),
    [
        ("replknet_nano", {"in_channels": 1}, "'stem.0.conv.weight' is [32, 1, 3, 3], replknet_nano's [32, 3, 3, 3]"),
        (
            "replknet_nano",
            {"small_kernel": None},
            "small_conv.conv.weight' is not there, replknet_nano's [32, 1, 5, 5]",
        ),
        (
            "replknet_nano",
            {"layers": (1, 1, 3, 1)},
            "'stages.2.blocks.4.prelkb_bn.weight' is [128], replknet_nano's not there",
        ),
        ("replknet_small", {}, "replknet_small's [96, 3, 3, 3]"),
    ],
)
def test_a_model_of_its_own_sizes_is_refused_when_it_is_saved(
    arch: str, sizes: dict, message: str, tmp_path: Path
) -> None:
    """The error comes when it is saved, not days later when it is loaded; the message's remedy works."""
    model = create_model("replknet_nano", 5, **sizes)
    with pytest.raises(ValueError, match=r"keep weights of a model of your own by torch\.save") as error:
        save_checkpoint(tmp_path / "new", model, ModelConfig(arch, 5))
    assert message in str(error.value)
    assert not (tmp_path / "new").exists()
    torch.save(model.state_dict(), tmp_path / "own.pth")
    alike = create_model("replknet_nano", 5, **sizes)
    load_weights(alike, tmp_path / "own.pth")
    assert same(alike.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("arch", "other"),
    [
        ("replknet_nano", "timm/resnet18"),
        ("replknet_nano", ""),
        ("timm/resnet18", ""),
        ("timm/resnet18", "timm/resnet26"),
    ],
)
def test_a_model_of_another_kind_is_refused_when_it_is_saved(arch: str, other: str, tmp_path: Path) -> None:
    """The message's remedy works for a network of one's own too."""

    def make() -> nn.Module:
        return create_model(other, 5) if other else nn.Sequential(nn.Flatten(), nn.Linear(12, 5))

    model = make()
    with pytest.raises(ValueError, match=r"keep weights of a model of your own by torch\.save"):
        save_checkpoint(tmp_path / "new", model, ModelConfig(arch, 5))
    assert not (tmp_path / "new").exists()
    torch.save(model.state_dict(), tmp_path / "own.pth")
    alike = make()
    load_weights(alike, tmp_path / "own.pth")
    assert same(alike.state_dict(), model.state_dict())
    torch.save(nn.Linear(12, 5).state_dict(), tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=r"own\.pth has no '.*': it belongs to another model"):
        load_weights(alike, tmp_path / "own.pth")


def test_frozen_batch_norms_are_saved(tmp_path: Path) -> None:
    """They count no batches, which loading does without."""
    model = freeze_batch_norm_2d(create_model("timm/resnet18", 5))
    save_checkpoint(tmp_path, model, ModelConfig("timm/resnet18", 5))
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(load_checkpoint(tmp_path)[0](images), model.eval()(images))


def test_a_save_replaces_the_files_and_never_writes_into_them(tmp_path: Path) -> None:
    config = ModelConfig("replknet_nano", 5)
    save_checkpoint(tmp_path, nano(1), config)
    opened = [path.open("rb") for path in sorted(tmp_path.iterdir())]
    sizes = [len(file.read()) for file in opened]
    inodes = [path.stat().st_ino for path in sorted(tmp_path.iterdir())]
    save_checkpoint(tmp_path, nano(2), config)
    assert all(path.stat().st_ino not in inodes for path in tmp_path.iterdir())
    assert [os.fstat(file.fileno()).st_size for file in opened] == sizes
    for file in opened:
        file.close()


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig("replknet_nano", 5)
    save_checkpoint(tmp_path, nano(1), config)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(tensors: State, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr("models.checkpoint.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, nano(2), config)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("mean"), "'mean' is missing"),
        (lambda c: c.update(colour="red"), "'colour' is unknown"),
        (lambda c: c.update(arch="resnet"), "arch 'resnet' is unknown"),
        (lambda c: c.update(labels=["one"]), "1 labels for num_classes 5"),
        (lambda c: c.update(labels=[0, 1, 2, 3, 4]), "labels [0, 1, 2, 3, 4]: a list of strings is needed"),
        (lambda c: c.update(labels="abcde"), "labels 'abcde': a list of strings is needed"),
        (lambda c: c.update(std=[1, 0, 1]), "std above 0"),
        (lambda c: c.update(mean=[127.5] * 3, std=[58] * 3), "both are on the 0..1 scale; divide by 255"),
        (lambda c: c.update(mean=0.5), "mean 0.5: three numbers are needed"),
        (lambda c: c.update(mean=[0, 0, float("nan")]), "divide by 255"),
        (lambda c: c.update(mean=[0, 0, -0.1]), "divide by 255"),
        (lambda c: c.update(std=[1, 1, float("nan")]), "divide by 255"),
        (lambda c: c.update(std=[1, 1, 58.395]), "divide by 255"),
        (lambda c: c.update(mean=[0.5] * 4), "three numbers each"),
        (lambda c: c.update(std=[0.5] * 2), "three numbers each"),
        (lambda c: c.update(std=["a", "b", "c"]), "std ['a', 'b', 'c']: three numbers are needed"),
        (lambda c: c.update(crop_pct="large"), "crop_pct 'large': a number is needed"),
        (lambda c: c.update(image_size=224.0), "image_size 224.0: a whole number is needed"),
        (lambda c: c.update(crop_pct=1.5), "crop_pct 1.5"),
        (lambda c: c.update(crop_pct=0.01), "crop_pct 0.01: the share that is kept must be 0.1 to 1"),
        (lambda c: c.update(interpolation="nearest"), "'nearest'"),
        (lambda c: c.update(crop_mode="middle"), "crop_mode 'middle'"),
        (lambda c: c.update(image_size="large"), "image_size"),
        (lambda c: c.update(image_size=31), "image_size 31"),
        (lambda c: c.update(num_classes=0), "num_classes 0"),
    ],
)
def test_bad_configs_are_named(change: Callable[[dict], object], message: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path, nano(), ModelConfig("replknet_nano", 5))
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(WeightsError, match=r"config\.json") as error:
        load_checkpoint(tmp_path)
    assert message in str(error.value)


def test_the_file_in_a_checkpoint_folder(tmp_path: Path) -> None:
    config = ModelConfig("replknet_nano", 5)
    save_checkpoint(tmp_path, nano(3), config)
    loaded, loaded_config = load_checkpoint(tmp_path / "model.safetensors")
    assert loaded_config == config
    assert same(loaded.state_dict(), nano(3).state_dict())
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/config\.json does not exist"):
        load_checkpoint(tmp_path / "model.safetensors")


def test_config_that_is_no_json_or_absent(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere/config\.json does not exist"):
        classifier_config(tmp_path / "nowhere", "")
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(WeightsError, match=r"config\.json"):
            load_checkpoint(tmp_path)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_config_defaults_are_the_architectures(arch: str) -> None:
    config, own = ModelConfig(arch), ARCHITECTURES[arch]
    assert (config.image_size, config.crop_pct, config.crop_mode, tuple(config.mean), tuple(config.std)) == (
        *(own.image_size, own.crop_pct, own.crop_mode, own.mean, own.std),
    )


@pytest.mark.parametrize(
    ("arch", "expected", "mean", "std"),
    [
        ("replknet_31b", (224, 224 / 256, "center"), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("replknet_31l", (384, 1.0, "squash"), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ("replknet_xl", (320, 224 / 256, "center"), [0.5] * 3, [0.5] * 3),
    ],
)
def test_published_weights_are_evaluated_as_their_authors_do(
    arch: str, expected: tuple[int, float, str], mean: list[float], std: list[float]
) -> None:
    """Below 384 px the centre, from there on the whole image without its aspect."""
    config = ModelConfig(arch)
    assert (config.image_size, config.crop_pct, config.crop_mode) == expected
    assert (config.mean, config.std, config.interpolation) == (mean, std, "bicubic")
