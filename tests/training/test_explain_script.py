"""The script that explains: overlays, their table, folders and shards."""

import csv
import dataclasses
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import training.cam
from client._overlay import PALETTE
from models import ModelConfig, create_model, load_checkpoint, save_checkpoint
from models.replknet import RepLKNet
from training import explain as script
from training.augment import eval_transform
from training.data import Unlabelled
from training.images import DataError, Transform, load_image
from training.settings import SettingsError

as_it_is = Transform([lambda picture: picture])


def test_the_scripts_own_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Word for word, on a model of the preset `digits` after its first epoch."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = create_model("replknet_nano", 10)
    save_checkpoint("runs/digits-nano", network, ModelConfig("replknet_nano", 10, image_size=32, crop_pct=1.0))
    digit = tmp_path / "data/digits/val/3/0001.png"
    digit.parent.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).save(digit)
    (command,) = [line for line in script.__doc__.splitlines() if line.startswith("    python -m training.explain ")]
    monkeypatch.setattr("sys.argv", command.split()[2:])
    assert script.main() == 0
    assert len(list(tmp_path.glob("runs/explained/*.png"))) == 1


@pytest.mark.parametrize("output", ["overlays", "."])
def test_overlays_among_the_images_are_refused(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """They would be explained next time, or stop a training, which would find one more label."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "load_classifier", None)  # called, it would be a TypeError
    monkeypatch.setattr("sys.argv", ["it", "--checkpoint", "c", "--data", ".", "--output", output, "--device", "cpu"])
    assert script.main() == 2
    assert f"--output {output} lies among the images of .: name a folder outside it" in capsys.readouterr().err


def test_images_go_through_the_model_a_few_at_a_time(
    model: RepLKNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds at once would need tens of gigabytes."""
    (tmp_path / "images").mkdir()
    for index in range(5):
        Image.fromarray(np.full((64, 64, 3), 40 * index, np.uint8)).save(tmp_path / "images" / f"{index}.png")
    save_checkpoint(tmp_path / "c", model, ModelConfig("replknet_nano", 5, image_size=64, labels=list("abcde")))
    config = script.Config(tmp_path / "c", tmp_path / "images", tmp_path / "all", device="cpu", scores=True)
    _, scores = script.explain_images(config)
    for module in (script, training.cam):
        monkeypatch.setattr(module, "AT_ONCE", 2)
    batches: list[int] = []
    written: list[int] = []  # overlays, whenever an image is read
    original, read = RepLKNet.forward_features, Unlabelled.image
    monkeypatch.setattr(
        RepLKNet, "forward_features", lambda self, images: batches.append(len(images)) or original(self, images)
    )
    monkeypatch.setattr(
        Unlabelled,
        "image",
        lambda *which: written.append(len([*tmp_path.glob("in_parts/*.png")])) or read(*which),
    )
    _, in_parts = script.explain_images(dataclasses.replace(config, output=tmp_path / "in_parts"))
    assert max(batches) == 2
    assert written == [0, 0, 2, 2, 4], "what is drawn is written, and not kept"
    for name in ("insertion", "deletion", "insertion of a random map"):
        assert in_parts[name] == pytest.approx(scores[name], rel=1e-4)
    assert in_parts.keys() == scores.keys()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, DataError])
def test_the_table_of_a_stopped_call_has_what_is_drawn(
    stop: type[BaseException], model: RepLKNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    for index in range(3):
        Image.new("RGB", (64, 64)).save(tmp_path / "images" / f"{index}.png")
    save_checkpoint(tmp_path / "c", model, ModelConfig("replknet_nano", 5, image_size=64, labels=list("abcde")))
    config = script.Config(tmp_path / "c", tmp_path / "images", tmp_path / "out", device="cpu")
    read = Unlabelled.image

    def image(data: Unlabelled, index: int, short_side: int | None) -> Image.Image:
        if index == last:
            raise stop(data.names[index])
        return read(data, index, short_side)

    monkeypatch.setattr(script, "AT_ONCE", 1)
    monkeypatch.setattr(Unlabelled, "image", image)
    for last in (0, 2):
        with pytest.raises(stop):
            script.explain_images(config)
        assert config.output.exists() == (last > 0)
    rows = (config.output / "explained.csv").read_text().splitlines()[1:]
    assert [Path(row.split(",")[0]).name for row in rows] == ["0.png", "1.png"]


def test_stronger_evidence_is_brighter_in_the_clients_colours() -> None:
    """On a dark picture a dark red at the end of the scale was a hole in the middle of the evidence."""
    width = 256
    blend = np.asarray(script.overlay(np.zeros((1, width, 3), np.uint8), torch.linspace(0, 1, width)[None]))[0, width:]
    assert np.diff(blend @ (0.299, 0.587, 0.114)).min() > -0.2, "but for rounding"
    assert np.abs(2 * blend.astype(int).ravel() - np.frombuffer(PALETTE, np.uint8)).max() <= 2


def test_script_writes_overlays(
    model: RepLKNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    save_checkpoint(tmp_path / "c", model, ModelConfig("replknet_nano", 5, image_size=64, labels=list("abcde")))
    (tmp_path / "images").mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    common = ["--checkpoint", str(tmp_path / "c"), "--data", str(tmp_path / "images"), "--device", "cpu"]
    run = ["explain", *common, "--output", str(tmp_path / "out"), "--count", "2"]
    outputs = []
    for method in ("cam", "cam", "layercam"):
        monkeypatch.setattr("sys.argv", [*run, "--method", method, "--target", "a", "--scores"])
        assert script.main() == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1], "what is random in the scores is drawn alike"
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["000_0_cam.png", "000_0_layercam.png", "001_1_cam.png", "001_1_layercam.png", "explained.csv"]
    with (tmp_path / "out" / "explained.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["picture"] for row in rows] == ["000_0_layercam.png", "001_1_layercam.png"]
    for row in rows:
        picture = eval_transform(load_checkpoint(tmp_path / "c")[1])(load_image(row["image"]))
        probabilities = model.eval()(picture[None]).softmax(1)[0].tolist()
        assert (row["label"], row["answer"]) == ("a", "abcde"[probabilities.index(max(probabilities))])
        assert row["answer"] != "a", "whose probability would be the same"
        assert float(row["probability"]) == pytest.approx(probabilities[0], rel=1e-4)
    assert Image.open(tmp_path / "out" / names[0]).size == (128, 64)
    printed = "".join(outputs[1:])
    assert all(f" {row['image']} " in printed for row in rows), "whole paths, on one line"
    assert "(lower is better)" in next(line for line in printed.splitlines() if line.startswith("deletion: "))
    assert printed.count("(higher is better)") == 2 * 2, "of a map of its own alone"
    for score in ("insertion", "deletion", "ROAD", "ROAD of a random map", "rank correlation, random down to head"):
        assert f"{score}: " in printed
    monkeypatch.setattr("sys.argv", [*run, "--target", "z"])
    assert script.main() == 2
    assert "--target z is not one of the 5 labels: a, b" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        script.find_images(tmp_path / "none", 3, as_it_is)
    for method in ([], ["--method", "cam"]):
        monkeypatch.setattr("sys.argv", [*run, *method, "--layer", "stages.0"])
        assert script.main() == 2
        assert "--layer stages.0 does nothing with --method cam: take layercam" in capsys.readouterr().err


def test_script_reads_shards(model: RepLKNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures are those of the same images in a folder."""
    save_checkpoint(tmp_path / "c", model, ModelConfig("replknet_nano", 5, image_size=64))
    for folder in ("images", "shards"):
        (tmp_path / folder).mkdir()
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as shard:
        for index in range(3):
            path = tmp_path / "images" / f"{index}.png"
            Image.fromarray(np.random.default_rng(index).integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(path)
            shard.add(path, f"dog/{index}.png")
    common = ["explain", "--checkpoint", str(tmp_path / "c"), "--device", "cpu", "--count", "2"]
    pictures = {}
    for folder in ("images", "shards"):
        output = tmp_path / "out" / folder
        monkeypatch.setattr("sys.argv", [*common, "--data", str(tmp_path / folder), "--output", str(output)])
        assert script.main() == 0
        pictures[folder] = {path.name: path.read_bytes() for path in output.glob("*.png")}
    assert pictures["images"] == pictures["shards"]
    assert sorted(pictures["shards"]) == ["000_0_cam.png", "001_1_cam.png"]


def test_a_name_as_long_as_can_be_is_shortened(model: RepLKNet, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", model, ModelConfig("replknet_nano", 5, image_size=64))
    (tmp_path / "images").mkdir()
    bird = "\u9e1f"  # of three bytes
    for name in ("x" * 251, 83 * bird):
        Image.new("RGB", (64, 64)).save(tmp_path / "images" / f"{name}.png")
    config = script.Config(tmp_path / "c", tmp_path / "images", tmp_path / "out", "layercam", device="cpu")
    script.explain_images(config)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == [
        f"000_{'x' * 200}_layercam.png",
        f"001_{66 * bird}_layercam.png",
    ]


@pytest.mark.parametrize("name", ["nope.jpg", "nowhere", "list.csv"])
def test_images_that_are_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"--data {tmp_path / name} does not exist: name an image, a folder"):
        script.find_images(tmp_path / name, 1, as_it_is)


def test_counts_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--count 0: it must be at least 1"):
        script.explain_images(script.Config(tmp_path, tmp_path, count=0))


def test_a_broken_image_that_was_named_gets_no_data_sets_advice(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png cannot be decoded \([^)]*\)$"):
        script.find_images(path, 1, as_it_is)
