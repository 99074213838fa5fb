"""Everything that is wrong with a data set, at once and before a run."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.full_disk import files_up_to
from tests.training.runs import QUIET
from tests.training.test_samplers import png, write_shard
from tests.training.test_splits import fill
from training import check
from training.check import Config, check_data, label_notes
from training.data import open_images
from training.finetune import train
from training.finetune_config import Config as FinetuneConfig
from training.images import DataError
from training.lists import write_list
from training.settings import SettingsError


def run(patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *options: object) -> tuple[int, list[str]]:
    patch.setattr("sys.argv", ["check", *map(str, options)])
    status = check.main()
    return status, capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_that_is_wrong_is_listed(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Path("data/train"), Ant=40, ant=2, bee=2)
    fill(Path("data/val"), ant=1, wasp=1)
    Path("data/train/empty").mkdir()
    Path("data/train/bee/0.png").write_bytes(Path("data/train/bee/0.png").read_bytes()[:45])
    Path("data/val/ant/none.jpg").touch()
    Image.fromarray(np.ones((3, 3), np.float32)).save("data/train/Ant/f.tif")
    fill(Path("data/train"), **{".net": 1, ".empty": 0})
    for name in ("train/ant/a.gif", "train/ant/b.heic", "train/bee/c.gif", "val/d.png"):
        (Path("data") / name).touch()
    status, lines = run(monkeypatch, capsys, "data", "--workers", workers)
    assert status == 1
    assert lines[0].startswith("error: data/train/empty holds no image: fill or remove it")
    assert lines[1].startswith("error: data/train/Ant/f.tif has pixels in floating point")
    assert lines[2].startswith("error: data/train/bee/0.png cannot be decoded (")
    assert lines[3] == "error: data/val/wasp is not one of the 4 labels (Ant, ant, bee, empty): rename or remove it"
    assert lines[4].startswith("error: data/val/ant/none.jpg cannot be decoded (")
    assert lines[5:] == [
        "note: 2 .gif, 1 .heic in train/",
        "note: images in the hidden folder train/.net",
        "note: data/train: 2 labels are alike: 'Ant', 'ant'",
        "note: 1 images outside the class folders of val/",
        "45 images of 3 classes in data/train; 3 images of 2 classes in data/val: 5 errors, 4 notes",
    ]


def test_what_can_be_trained_on_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for part in ("train", "valid"):
        fill(tmp_path / "two" / part, ant=1, bee=1)
    status, lines = run(monkeypatch, capsys, tmp_path / "two", "--val-folder", "valid", "--workers", 0)
    assert (status, len(lines)) == (0, 1)
    assert lines[0].endswith("two/valid: 0 errors, 0 notes")
    status, lines = run(monkeypatch, capsys, tmp_path / "two" / "train", "--workers", 0)
    assert (status, len(lines)) == (0, 2)
    assert "two/train has no train/: to train on it, add --val-share 0.2" in lines[0]
    listed = tmp_path / "val.csv"
    write_list(listed, open_images(tmp_path / "two" / "train", None))
    status, lines = run(monkeypatch, capsys, listed, "--workers", 0)
    assert (status, lines) == (0, [f"2 images of 2 classes in {listed}: 0 errors, 0 notes"]), "a list is not trained on"


def test_a_folder_one_level_too_high_names_those_below(tmp_path: Path) -> None:
    for part in ("digits/train", "digits/val", "letters/train"):
        fill(tmp_path / part, ant=1, bee=1)
    findings = check_data(Config(tmp_path, workers=0))
    assert findings.notes == [
        f"{tmp_path} has no train/: to train on it, name one that has: {tmp_path}/digits, {tmp_path}/letters"
    ]
    for label in ("Ant", "Bee"):  # labels with parts are no data
        fill(tmp_path / "labels" / label, train=1, val=1)
    assert check_data(Config(tmp_path / "labels", workers=0)).notes[0].endswith("to train on it, add --val-share 0.2")


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("two", r"two/val is not a folder: --val-folder names another \(valid/\)"),
        ("nowhere", r"nowhere is not a folder"),
        ("empty", r"empty holds no folder: images are expected in .*empty/LABEL/FILE"),
        ("one", r"one has 1 class to train on, ant: a classifier needs 2"),
        ("bad", r"bad/0\.tar cannot be read"),
    ],
)
def test_what_stops_a_run_at_once_is_an_error(folder: str, message: str, tmp_path: Path) -> None:
    for part in ("train", "valid"):
        fill(tmp_path / "two" / part, ant=1, bee=1)
    fill(tmp_path / "one", ant=1)
    for name in ("empty", "bad"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad" / "0.tar").write_bytes(b"no shard" * 100)
    findings = check_data(Config(tmp_path / folder, workers=0))
    errors = findings.errors
    assert len(errors) == 1
    assert not (findings.notes and folder in ("nowhere", "empty", "bad")), "of what cannot be opened there is no more"
    assert re.search(message, errors[0]), errors


def test_shards_are_decoded_too(tmp_path: Path) -> None:
    members = {"a.png": png(0), "a.cls": b"0", "b.png": b"no image", "b.cls": b"1", "c.png": png(1), "c.cls": b"2"}
    write_shard(tmp_path / "0.tar", members)
    (tmp_path / "labels.txt").write_text("ant\nbee\nant\n")
    findings = check_data(Config(tmp_path, workers=0))
    (error,) = findings.errors
    assert error.startswith(f"{tmp_path}/0.tar:b.png cannot be decoded (")
    assert findings.notes[0] == f"{tmp_path}: 2 labels are alike: 'ant', 'ant'"
    assert "has no train/: to train on it, put some shards into it" in findings.notes[1]
    assert findings.parts == [f"3 images of 3 classes in 1 shards of {tmp_path}"]


def test_images_that_are_there_twice(tmp_path: Path) -> None:
    """In training and held-out images, which flatters a model; under two labels; in one class."""
    fill(tmp_path / "train", ant=3, bee=2)
    fill(tmp_path / "val", ant=1, bee=1)
    Image.open(tmp_path / "train/ant/0.png").save(tmp_path / "val/bee/0.bmp")  # other bytes
    for copy, of in (("val/ant/1.png", "train/ant/1.png"), ("train/bee/9.png", "train/ant/2.png")):
        shutil.copy(tmp_path / of, tmp_path / copy)
    for number in (7, 8):
        shutil.copy(tmp_path / "train/bee/0.png", tmp_path / f"train/bee/{number}.png")
    train, val = tmp_path / "train", tmp_path / "val"
    findings = check_data(Config(tmp_path, workers=0))
    assert findings.errors == []
    assert findings.notes == [
        f"2 images of {train} are there twice ({train}/bee/7.png = {train}/bee/0.png; --duplicates FILE.csv lists all)",
        f"1 images of {train} have two labels ({train}/bee/9.png = {train}/ant/2.png)",
        f"2 images of {val} are in {train} too: accuracy on them says little of a model "
        f"({val}/ant/1.png = {train}/ant/1.png; --duplicates FILE.csv lists all)",
        f"1 images of {val} have two labels ({val}/bee/0.bmp = {train}/ant/0.png)",
    ]
    for name, size in (("wide", (8, 2)), ("high", (2, 8))):  # the same bytes, another picture
        Image.new("RGB", size).save(tmp_path / f"train/bee/{name}.png")
    assert check_data(Config(tmp_path, workers=0)).notes == findings.notes
    members = {"a.png": png(0), "a.cls": b"0", "b.png": png(0), "b.cls": b"1"}
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards/0.tar", members)
    shard = tmp_path / "shards/0.tar"
    (note,) = (note for note in check_data(Config(tmp_path / "shards", workers=0)).notes if "two labels" in note)
    assert note == f"1 images of {tmp_path}/shards have two labels ({shard}:b.png = {shard}:a.png)"


def test_all_duplicates_are_listed_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Path("data"), ant=2, bee=1)
    for copy, of in (("ant/7.png", "ant/0.png"), ("ant/8.png", "ant/0.png"), ("bee/9.png", "ant/1.png")):
        shutil.copy(f"data/{of}", f"data/{copy}")
    assert run(monkeypatch, capsys, "data", "--workers", 0, "--duplicates", "twice.csv")[0] == 0
    assert Path("twice.csv").read_text().split() == [
        "image,label,same_as,its_label",
        "data/ant/7.png,ant,data/ant/0.png,ant",
        "data/ant/8.png,ant,data/ant/0.png,ant",
        "data/bee/9.png,bee,data/ant/1.png,ant",
    ]
    with files_up_to(5):
        status, lines = run(monkeypatch, capsys, "data", "--workers", 0, "--duplicates", "twice.csv")
    assert status == 1
    assert any("2 images of data are there twice" in line for line in lines), "on a full disk too"
    with pytest.raises(SettingsError, match="--duplicates data is a folder: name a file"):
        check_data(Config(Path("data"), duplicates=Path("data")))


def test_labels_that_are_empty_or_not_utf8_are_errors(tmp_path: Path) -> None:
    """No checkpoint could hold them: a run would end in its first epoch."""
    fill(tmp_path / "folder", ant=1, **{os.fsdecode(b"caf\xe9"): 1})
    (error,) = check_data(Config(tmp_path / "folder", workers=0)).errors
    assert error.endswith(r"folder has the label b'caf\xe9', which is not UTF-8: rename that folder")
    write_shard(tmp_path / "0.tar", {"a.png": png(0), "a.cls": b"0"})
    (tmp_path / "labels.txt").write_bytes(b"caf\xe9\n")
    (error,) = check_data(Config(tmp_path, workers=0)).errors
    assert re.search(r"labels\.txt: line 1 is not UTF-8 \(.*\): convert the file$", error)
    (tmp_path / "labels.txt").write_text("ant\n\nbee\n")
    (error,) = check_data(Config(tmp_path, workers=0)).errors
    assert error.endswith("labels.txt: line 2 is empty: a label is needed in each")


def test_workers_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--workers -1: it must be 0 to 1024"):
        check_data(Config(tmp_path, workers=-1))


def test_labels_that_are_alike() -> None:
    assert label_notes(["cat", "dog"]) == []
    assert label_notes(["caf\u00e9", "cafe\u0301", "a  b", "A b ", " "]) == [
        "2 labels are alike: 'caf\u00e9', 'cafe\u0301'",
        "2 labels are alike: 'a  b', 'A b '",
    ]


def test_a_label_that_cannot_be_served_is_an_error(tmp_path: Path) -> None:
    for part in ("train", "val"):
        fill(tmp_path / "data" / part, **{"ant": 2, "new\nline": 2, " ": 2})
    errors = check_data(Config(tmp_path / "data", workers=0)).errors
    what = "is empty or has a line break, and cannot be served: rename it"
    assert errors == [f"{tmp_path}/data/train: the label {label!r} {what}" for label in (" ", "new\nline")]
    with pytest.raises(DataError, match=re.escape(f"data: the label ' ' {what}")):
        train(FinetuneConfig(data=tmp_path / "data", output=tmp_path / "run", device="cpu"), QUIET)
    assert not (tmp_path / "run").exists()
