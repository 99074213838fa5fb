"""What an evaluation reports and writes: top-1 and top-5, the table by class, files of tables and figures."""

import csv
import json
import shutil
import tarfile
from collections import Counter
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from models import ModelConfig, create_model, load_checkpoint, save_checkpoint
from tests.training.runs import Tiny, records
from tests.training.test_splits import fill
from training import evaluate as script
from training.augment import eval_transform
from training.data import open_images
from training.evaluate import Config as EvaluateConfig
from training.evaluate import arguments, evaluate
from training.finetune import train
from training.images import DataError, load_image
from training.samples import write_digits
from training.settings import SettingsError
from training.tables import per_class_table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau_norm": float("nan")}, "--tau-norm nan: a finite number is needed"),
        ({"tau_norm": -1.0}, r"--tau-norm -1\.0: it must be at least 0"),
        ({"logit_adjustment": float("nan")}, "--logit-adjustment nan: a finite"),
        ({"logit_adjustment": -0.5}, r"--logit-adjustment -0\.5: it must be at least 0"),
        ({"batch_size": 0}, "--batch-size 0: it must be at least 1"),
        ({"workers": -1}, "--workers -1: it must be 0 to 1024"),
    ],
)
def test_settings_that_cannot_be(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message):
        script.evaluate(script.Config(tmp_path, tmp_path, device="cpu", **changes))


def test_labels_are_text_in_the_table(capsys: pytest.CaptureFixture) -> None:
    """A label may look like rich's markup, which would vanish or be an error."""
    Console(width=100).print(per_class_table(torch.eye(2, dtype=torch.int64).flip(0), ["[dog]", "[/x]"]))
    out = capsys.readouterr().out
    assert out.count("[dog]") == out.count("[/x]") == 2


def test_top5_is_in_the_log_the_epochs_line_and_the_evaluation(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    digits = write_digits(tmp_path / "digits")
    for part, count in (("train", 8), ("val", 4)):
        for label in range(10):
            for path in sorted((digits / part / str(label)).iterdir())[count:]:
                path.unlink()
    console = Console(file=StringIO(), width=500)
    train(tiny(tmp_path / "run", data=digits, epochs=1), console)
    (record,) = records(tmp_path / "run")
    assert 1 > record["top5"] > record["top1"]
    assert f"top-1 {record['top1']:.2%}  top-5 {record['top5']:.2%}  waited " in console.file.getvalue()
    monkeypatch.setattr("sys.argv", ["it", "--checkpoint", str(tmp_path / "run"), "--data", str(digits / "val")])
    assert script.main() == 0
    assert f"top-5 {record['top5']:.2%}: {round(40 * record['top5'])} of 40 right" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is damaged"), (b'{"class_counts": [1', "is damaged"), (b"\xff", "is damaged"), (b"[3, 1]", "holds a list")],
)
def test_damaged_arguments_beside_a_checkpoint_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    assert arguments(tmp_path) == {}
    (tmp_path / "args.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{tmp_path}/args\.json {message}.*: restore it, or remove it"):
        arguments(tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("checkpoint")
    labels = ["0", "1", "4", "5", "6", "7"]
    config = ModelConfig("replknet_nano", 6, image_size=32, crop_pct=1.0, labels=labels)
    save_checkpoint(folder, create_model("replknet_nano", 6), config)
    return folder


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_and_the_confusion_matrix_are_written(
    checkpoint: Path,
    small_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    options = ["--checkpoint", checkpoint, "--data", small_digits / "val", "--device", "cpu", "--batch-size", "5"]
    files = [part for name in ("csv", "confusion", "predictions") for part in (f"--{name}", tmp_path / f"x/{name}.csv")]
    monkeypatch.setattr("sys.argv", ["it", *map(str, [*options, *files])])
    assert script.main() == 0
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["confusion.csv", "csv.csv", "predictions.csv"]
    rows = read(tmp_path / "x/predictions.csv")
    assert list(rows[0]) == ["image", "label", "answer", "probability", "answer2", "answer3", "answer4", "answer5"]
    assert [row["image"] for row in rows] == [str(path) for path in sorted((small_digits / "val").glob("*/*"))]
    assert all(row["label"] == Path(row["image"]).parent.name for row in rows)
    confusion = read(tmp_path / "x/confusion.csv")
    pairs = Counter((row["label"], row["answer"]) for row in rows)
    assert {(row["label"], name): int(row[name]) for row in confusion for name in row if name != "label"} == {
        (truth, answer): pairs[truth, answer] for truth in list(confusion[0])[1:] for answer in list(confusion[0])[1:]
    }
    model = load_checkpoint(checkpoint)[0].eval()
    transform = eval_transform(load_checkpoint(checkpoint)[1])
    with torch.inference_mode():
        shares = model(transform(load_image(rows[7]["image"]))[None]).softmax(1)[0]
    expected = [["0", "1", "4", "5", "6", "7"][index] for index in shares.argsort(descending=True)[:5]]
    assert [rows[7][name] for name in ("answer", "answer2", "answer3", "answer4", "answer5")] == expected
    assert float(rows[7]["probability"]) == pytest.approx(shares.max().item(), abs=1e-5)
    confidence, right = zip(*((float(row["probability"]), row["label"] == row["answer"]) for row in rows), strict=True)
    bins = np.ceil(15 * np.array(confidence)).astype(int)
    gap = sum(abs(np.sum((np.array(right) - confidence)[bins == each])) for each in range(1, 16)) / len(rows)
    shown = capsys.readouterr().out.partition("expected calibration error ")[2].partition("%")[0]
    assert float(shown) == pytest.approx(100 * gap, abs=0.01), "what the table's probabilities give"
    again = open_images(tmp_path / "x/predictions.csv", None, ["0", "1", "4"])
    assert again.targets == open_images(small_digits / "val", None).targets, "predictions are a list of images too"


def test_the_figures_that_are_shown_are_written_as_json(
    checkpoint: Path,
    small_digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    file, table, val = tmp_path / "new/figures.json", tmp_path / "table.csv", small_digits / "val"
    run = tmp_path / "run"
    shutil.copytree(checkpoint, run)
    (run / "args.json").write_text('{"class_counts": [200, 50, 5, 5, 5, 5]}')
    options = ["--checkpoint", run, "--data", val, "--device", "cpu", "--crop-pct", "0.9", "--tau-norm", "0.5"]
    monkeypatch.setattr("sys.argv", ["it", *map(str, [*options, "--json", file, "--csv", table])])
    monkeypatch.setenv("COLUMNS", "120")
    assert script.main() == 0
    said, found = capsys.readouterr().out, json.loads(file.read_text())
    assert f"top-1 {found['top1']:.2%}: {found['right']} of {found['images']} right\n" in said
    assert f"top-5 {found['top5']:.2%}: {round(found['top5'] * 24)} of 24 right\n" in said
    error = f"expected calibration error {found['calibration_error']:.2%}"
    assert f"{error}, negative log-likelihood {found['nll']:.4f}\n" in said
    shares = ", ".join(f"{name} {found[name]:.2%}" for name in ("balanced", "many", "medium", "few"))
    assert f"mean over classes: {shares}\n" in said
    assert {name: found[name] for name in ("checkpoint", "data", "crop_pct", "tau_norm", "deploy", "amp")} == {
        **{"checkpoint": str(run), "data": str(val), "crop_pct": 0.9, "tau_norm": 0.5, "deploy": False, "amp": "off"}
    }
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in said.splitlines() if "│" in line]
    shown = [
        [
            *(entry["label"], str(entry["images"]), str(entry["right"]), f"{entry['top1']:.2%}"),
            *("" if entry["precision"] is None else f"{entry['precision']:.2%}", entry["most_often_taken_for"]),
        ]
        for entry in found["classes"]
    ]
    assert cells == shown
    rows = [{name: "" if value is None else str(value) for name, value in entry.items()} for entry in found["classes"]]
    assert read(table) == rows
    precisions = [entry["precision"] for entry in found["classes"]]
    assert None in precisions, "a class that is never answered"
    assert set(precisions) != {None}


def test_each_table_has_a_file_of_its_own_and_is_named(
    checkpoint: Path, small_digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    values = {"checkpoint": checkpoint, "data": small_digits / "val", "device": "cpu", "csv": tmp_path / "a.csv"}
    with pytest.raises(SettingsError, match=r"--csv .*a\.csv: another table is written to this file"):
        evaluate(EvaluateConfig(**values, confusion=tmp_path / "a.csv"))
    script.report(EvaluateConfig(**values, save=tmp_path / "saved"))
    assert capsys.readouterr().out.splitlines()[-1] == f"written: {tmp_path / 'a.csv'}, {tmp_path / 'saved'}"


def test_a_folder_above_the_labels_names_those_below(checkpoint: Path, small_digits: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{small_digits} holds no label, but .*: give {small_digits}/val$"):
        evaluate(EvaluateConfig(checkpoint, small_digits, device="cpu"))
    whole = tmp_path / "whole"
    for part in ("test", "train", "valid"):
        fill(whole / part, ant=1)
    for folder in (whole, tmp_path):
        with pytest.raises(DataError, match=rf"give {whole}/test or {whole}/valid$"):
            open_images(folder, None, ["ant"])
    assert open_images(whole, None, ["test", "train", "valid"]).targets == [0, 1, 2], "labels may have these names"
    with pytest.raises(DataError, match=rf"{whole}/train is not one of the 2 labels"):
        open_images(whole, None, ["test", "valid"])


def test_the_file_in_a_checkpoint_folder_is_the_checkpoint(checkpoint: Path, small_digits: Path) -> None:
    arguments = checkpoint / "args.json"
    file = checkpoint / "model.safetensors"
    with pytest.raises(SettingsError, match=f"--logit-adjustment needs class_counts in {arguments}"):
        evaluate(EvaluateConfig(file, small_digits / "val", logit_adjustment=1.0, device="cpu"))
    arguments.write_text('{"class_counts": [9, 1, 1, 1, 1, 1]}')
    for factor in (0.0, 5.0):
        of_folder, of_file = (
            evaluate(EvaluateConfig(path, small_digits / "val", logit_adjustment=factor, device="cpu"))[0]
            for path in (checkpoint, file)
        )
        assert of_folder.equal(of_file)
    arguments.unlink()


def test_predictions_of_shards_name_their_members(checkpoint: Path, small_digits: Path, tmp_path: Path) -> None:
    (tmp_path / "a.cls").write_text("2")
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        shard.add(next((small_digits / "val" / "4").iterdir()), "a.png")
        shard.add(tmp_path / "a.cls", "a.cls")
    evaluate(EvaluateConfig(checkpoint, tmp_path, predictions=tmp_path / "p.csv", device="cpu"))
    (row,) = read(tmp_path / "p.csv")
    assert (row["image"], row["label"]) == (f"{tmp_path}/0.tar:a.png", "4")
    evaluate(EvaluateConfig(checkpoint, tmp_path, predictions=Path("/dev/null"), device="cpu"))
    assert not Path("/dev/null").is_file()
