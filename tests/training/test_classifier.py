"""Weights that others publish, evaluated, attacked and explained without a checkpoint of ours around them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from models import ModelConfig, create_model, save_checkpoint
from tests.training.test_splits import fill
from training import attack, evaluate, explain
from training.classifier import load_classifier
from training.settings import SettingsError

WNIDS = ("n01440764", "n01443537", "n01484850")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A file like RepLKNet's: a torch.save with the weights under "model"."""
    torch.manual_seed(0)
    path = tmp_path / "published.pth"
    torch.save({"model": create_model("replknet_nano", 3).state_dict()}, path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return fill(tmp_path / "val", **dict.fromkeys(WNIDS, 2))


def test_published_weights_are_judged_by_every_script(published: Path, images: Path, tmp_path: Path) -> None:
    common = {"arch": "replknet_nano", "device": "cpu"}
    confusion, labels, _ = evaluate.evaluate(evaluate.Config(published, images, **common))
    assert labels == [*WNIDS], "ImageNet's folders in their order are the published classes"
    same = create_model("replknet_nano", 3)
    same.load_state_dict(torch.load(published)["model"])
    save_checkpoint(tmp_path / "ours", same, ModelConfig("replknet_nano", 3, labels=[*WNIDS]))
    assert confusion.equal(evaluate.evaluate(evaluate.Config(tmp_path / "ours", images, device="cpu"))[0])
    clean, attacked = attack.attack_checkpoint(attack.Config(published, images, attacks=("fgsm",), **common))
    assert clean.accuracy == confusion.trace().item() / 6
    assert attacked.accuracy <= clean.accuracy
    output = tmp_path / "explained"
    explain.explain_images(explain.Config(published, images, output=output, target="2", count=1, **common))
    assert len(list(output.glob("*.png"))) == 1


def test_a_published_file_is_judged_at_the_size_that_it_was_published_at(
    published: Path, images: Path, tmp_path: Path
) -> None:
    """RepLKNet-31B's weights of 384 px are squashed; the architecture's own are 224 px with a crop."""
    size: dict[str, Any] = {"image_size": 64, "crop_pct": 1.0, "crop_mode": "squash"}
    _, config, _ = load_classifier(published, "replknet_nano")
    same = load_classifier(published, "replknet_nano")[0]
    save_checkpoint(tmp_path / "ours", same, replace(config, labels=[*WNIDS], **size))
    tables = [tmp_path / "published.csv", tmp_path / "ours.csv", tmp_path / "other.csv"]
    common = {"arch": "replknet_nano", "device": "cpu"}
    evaluate.evaluate(evaluate.Config(published, images, predictions=tables[0], **common, **size))
    evaluate.evaluate(evaluate.Config(tmp_path / "ours", images, predictions=tables[1], device="cpu"))
    evaluate.evaluate(evaluate.Config(published, images, predictions=tables[2], **common))
    assert tables[0].read_text() == tables[1].read_text() != tables[2].read_text()
    report = tmp_path / "attack.json"
    attack.report(attack.Config(published, images, attacks=("fgsm",), json=report, **common, **size))
    assert size.items() <= json.loads(report.read_text()).items()
    output = tmp_path / "explained"
    explain.explain_images(explain.Config(published, images, output=output, count=1, **common, **size))
    with Image.open(next(output.glob("*.png"))) as picture:
        assert picture.size == (128, 64)
    with pytest.raises(ValueError, match="image_size 16"):
        load_classifier(published, "replknet_nano", image_size=16)


def test_labels_that_are_numbers_are_the_classes(published: Path, tmp_path: Path) -> None:
    images = fill(tmp_path / "val", **{"2": 1, "1": 1})
    assert load_classifier(published, "replknet_nano", images)[2] == ["0", "1", "2"]
    assert load_classifier(published, "replknet_nano")[2] == ["0", "1", "2"]


def test_a_part_of_the_classes_is_refused(published: Path, images: Path) -> None:
    for path in (images / WNIDS[0]).iterdir():
        path.unlink()
    (images / WNIDS[0]).rmdir()
    with pytest.raises(SettingsError, match=r"has 3 classes and no labels, .* has 2 labels: give a folder of all"):
        load_classifier(published, "replknet_nano", images)


def test_what_a_file_is_must_be_said(published: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--arch is needed: no config\.json .* lies beside .*published\.pth"):
        load_classifier(published)
    with pytest.raises(FileNotFoundError, match=r"nowhere/config\.json does not exist: a checkpoint folder holds"):
        load_classifier(tmp_path / "nowhere")
    (tmp_path / "run" / "last").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"run/config\.json does not exist: the run has not finished"):
        load_classifier(tmp_path / "run")
    save_checkpoint(tmp_path / "ours", create_model("replknet_nano", 3), ModelConfig("replknet_nano", 3))
    with pytest.raises(FileNotFoundError, match="ema"):
        load_classifier(tmp_path / "ours/ema.safetensors")
    with pytest.raises(ValueError, match=r"--arch timm/resnet18, but .*ours holds replknet_nano: leave --arch out"):
        load_classifier(tmp_path / "ours", "timm/resnet18")


def test_timm_s_own_files_are_judged(images: Path, tmp_path: Path) -> None:
    model = create_model("timm/resnet18", 3)
    save_file(model.state_dict(), tmp_path / "resnet18.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    loaded, config, labels = load_classifier(tmp_path / "resnet18.safetensors", "timm/resnet18", images)
    assert (config.arch, config.num_classes, labels) == ("timm/resnet18", 3, [*WNIDS])
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
