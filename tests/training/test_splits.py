"""What is held out: a folder of any name, or a share of every class, and the list of it that a run leaves."""

import csv
import os
import shutil
from collections import Counter
from hashlib import shake_128
from io import StringIO
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image
from rich.console import Console

from tests.training.runs import QUIET, Tiny, records
from training import attack, explain, finetune, pretrain
from training.accuracy import by_class, top1
from training.data import Unlabelled, open_images
from training.evaluate import Config as EvaluateConfig
from training.evaluate import evaluate
from training.finetune import train
from training.images import DataError, Transform
from training.lists import read_list
from training.settings import SettingsError
from training.splits import SplitConfig, held_out_of, names_digest, open_split, open_unlabelled_split


def fill(root: Path, **labels: int) -> Path:
    for label, count in labels.items():
        (root / label).mkdir(parents=True)
        for index in range(count):
            path = root / label / f"{index}.png"
            Image.frombytes("L", (9, 9), shake_128(os.fsencode(path)).digest(81)).save(path)  # none is there twice
    return root


@pytest.fixture
def flat(small_digits: Path, tmp_path: Path) -> Path:
    """LABEL/FILE, 10 of each of three digits."""
    for label in ("0", "1", "4"):
        (tmp_path / "flat" / label).mkdir(parents=True)
        for path in sorted((small_digits / "train" / label).iterdir())[:10]:
            shutil.copy(path, tmp_path / "flat" / label)
    return tmp_path / "flat"


def test_a_share_of_every_class_is_held_out_and_one_image_is_kept() -> None:
    counts = {"a": 100, "b": 3, "c": 2, "d": 1}
    files = [f"{label}/{index}.png" for label, count in counts.items() for index in range(count)]
    held_out = held_out_of(files, 0.2)
    assert Counter(files[place][0] for place in held_out) == {"a": 20, "b": 1, "c": 1}
    assert held_out == sorted(held_out)
    assert Counter(files[place][0] for place in held_out_of(files, 0.999)) == {"a": 99, "b": 2, "c": 1}
    assert held_out_of(files[:10], 0.3) == [0, 2, 8], "on every machine"
    before, after = ({files[place] for place in held_out_of(files[:count], 0.2)} for count in (99, 100))
    assert len(before - after) <= 1, "one file more moves one at most"


def test_the_parts_are_disjoint_and_the_same_with_and_without_labels(tmp_path: Path) -> None:
    data = fill(tmp_path, ant=10, bee=20)
    config = SplitConfig(data, val_share=0.2)
    train_set, val_set = open_split(config)
    names = [set(part.names) for part in (train_set, val_set)]
    assert [len(part) for part in names] == [24, 6]
    assert not names[0] & names[1]
    assert Counter(val_set.targets) == {0: 2, 1: 4}
    assert train_set.classes == val_set.classes == ["ant", "bee"]
    assert [set(part.names) for part in open_unlabelled_split(config)] == names
    (tmp_path / "loose").mkdir()
    pictures = fill(tmp_path / "loose", deep=1)
    for index in range(9):
        Image.new("L", (9, 9)).save(pictures / f"{index}.png")
    assert [len(part) for part in open_unlabelled_split(SplitConfig(pictures, val_share=0.33))] == [7, 3]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SplitConfig(Path("flat")), r"flat/train is not a folder: .*Does it hold LABEL/FILE itself\? --val-share 0\.2"),
        (SplitConfig(Path("nowhere")), r"--data nowhere is not a folder: name one with train/ and val/"),
        (
            SplitConfig(Path("two")),
            r"two/val is not a folder: --val-folder names another \(test/, valid/\), or --data two/",
        ),
        (SplitConfig(Path("one")), r"one/val is not a folder: --data one/train --val-share 0\.2 holds out"),
        (SplitConfig(Path("two"), val_folder="x"), r"two/x is not a folder: --val-folder names another"),
        (SplitConfig(Path("two"), val_folder="train"), r"--val-folder train is what is trained on"),
        (SplitConfig(Path("two"), val_share=0.2), r"--val-share 0\.2: two has a train/ of folders: add it to --data"),
        (SplitConfig(Path("flat"), val_share=1.0), r"--val-share 1\.0: it must be at least 0 and below 1"),
        (SplitConfig(Path("flat"), val_share=-0.1), r"--val-share -0\.1: it must be at least 0 and below 1"),
        (SplitConfig(Path("flat"), val_share=0.2, val_folder="x"), r"and --val-folder x: give only one of them"),
        (SplitConfig(Path("shards"), val_share=0.2), r"shards holds shards: put some into shards/train"),
        (SplitConfig(Path("single"), val_share=0.2), r"no class in single has a second image to hold out"),
    ],
)
def test_what_cannot_be_split_is_named(
    config: SplitConfig, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(Path("flat"), ant=2, bee=2)
    for part in ("two/train", "two/valid", "two/test", "one/train"):
        fill(Path(part), ant=1, bee=1)
    fill(Path("single"), ant=1, bee=1)
    Path("shards").mkdir()
    Path("shards/0.tar").touch()
    for opener in (open_split, open_unlabelled_split):
        with pytest.raises((DataError, SettingsError), match=message):
            opener(config)


def test_the_held_out_folder_has_any_name(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        fill(tmp_path / part, ant=2, bee=1)
    assert [len(part) for part in open_split(SplitConfig(tmp_path, val_folder="valid"))] == [3, 3]


def test_a_run_lists_what_it_holds_out_and_every_script_reads_the_list(
    flat: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("0/a.gif", "0/b.heic", "0/c.gif", "d.png"):
        (flat / name).touch()
    console = Console(file=StringIO(), width=500)
    monkeypatch.chdir(tmp_path)
    config = tiny(tmp_path / "run", data=Path("flat"), val_share=0.2, epochs=1)
    train(config, console)
    out = console.file.getvalue()
    assert out.startswith("ignored: 2 .gif, 1 .heic in flat/; 1 images outside the class folders of flat/\n")
    assert f"6 held-out images, which {tmp_path}/run/val.csv lists" in out.replace("\n", " ")
    listed = tmp_path / "run" / "val.csv"
    with listed.open() as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["label"] for row in rows) == {"0": 2, "1": 2, "4": 2}
    assert all(Path(row["image"]).parent == flat / row["label"] for row in rows)
    monkeypatch.chdir("/")
    confusion, *_ = evaluate(EvaluateConfig(tmp_path / "run", listed, device="cpu"))
    assert confusion.sum() == 6
    assert top1(by_class(confusion)) == records(tmp_path / "run")[-1]["top1"]
    (clean, _) = attack.attack_checkpoint(attack.Config(tmp_path / "run", listed, ("fgsm",), device="cpu"))
    assert (clean.accuracy, clean.images) == (top1(by_class(confusion)), 6)
    assert len([*explain.find_images(listed, 9, Transform([lambda it: it]))]) == len(Unlabelled(listed)) == 6

    monkeypatch.chdir(tmp_path)
    train(config, console)
    assert "is finished already" in console.file.getvalue()
    with pytest.raises(SettingsError, match=r"has val_share 0\.2, this one 0\.21"):
        train(tiny(tmp_path / "run", data=Path("flat"), val_share=0.21, epochs=1), QUIET)
    train(tiny(tmp_path / "run", epochs=1, resume="never"), QUIET)
    assert not listed.exists(), "another run held out other images"


def test_a_list_that_a_spreadsheet_saved_is_read(tmp_path: Path) -> None:
    """A spreadsheet adds a byte order mark."""
    path = tmp_path / "val.csv"
    path.write_bytes(b"\xef\xbb\xbfimage,label\r\n%s,ant\r\n" % bytes(path))
    assert read_list(path) == [(str(path), "ant")]


def test_a_list_that_is_not_there_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "val.csv"
    message = r"val\.csv does not exist: name a list of images, or a folder"
    with pytest.raises(DataError, match=message):
        open_images(path, None)
    with pytest.raises(DataError, match=message):
        Unlabelled(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "image,label\na.png,b\n",
            r"lists a\.png, which is not there: it is looked for in /.*, correct the list",
        ),
        ("name,label\na,b\n", r"val\.csv is not a list of images \(no column 'image'\): line 1 is image,label"),
        ("image,label\n", r"val\.csv lists no image"),
        ("image,rank,label\n{here},1,ant\n", r"val\.csv is not a list .*: its column rank shows .* model's answers"),
        ("image,label,picture\n{here},ant,a.png\n", r"val\.csv is not a list .*: its column picture shows"),
        ("image,label\n{here},ant\n{here}\n", r"val\.csv, line 3, is cut short: give a file and its label"),
        (
            "image,label\n/nowhere/a.png,ant\n",
            r"val\.csv lists /nowhere/a\.png, which is not there: if the data have moved",
        ),
        ("image,label\n{here},bee\n", r"val\.csv: bee is not one of the 1 labels: ant"),
    ],
)
def test_bad_lists_are_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "val.csv"
    path.write_text(content.format(here=path))
    with pytest.raises(DataError, match=message):
        open_images(path, None, ["ant"])
    if "bee" not in content:
        with pytest.raises(DataError, match=message):
            Unlabelled(path)


def test_names_are_compared_and_not_where_the_data_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, other = fill(tmp_path / "data", ant=4, bee=4), fill(tmp_path / "moved/other", ant=4, bee=4)
    monkeypatch.chdir(data)
    found = [names_digest(*open_split(SplitConfig(root, val_share=0.5))) for root in (Path(), data, other)]
    assert found[0] == found[1] == found[2]
    assert all(each.startswith("4 images, sha256 ") for each in found[0])
    assert names_digest(*open_unlabelled_split(SplitConfig(other, val_share=0.5))) != found[0], "no classes"
    before = names_digest(open_images(other, None))
    assert before == names_digest(open_images(data, None))
    shutil.move(other / "ant/0.png", other / "bee/9.png")
    shutil.move(other / "bee/0.png", other / "ant/9.png")
    assert names_digest(open_images(other, None)) != before
    listed = [write_list_of(tmp_path / name, labels) for name, labels in {"a.csv": "ab", "b.csv": "ba"}.items()]
    assert names_digest(open_images(listed[0], None)) != names_digest(open_images(listed[1], None)), "the same names"


@pytest.mark.parametrize(("options", "output"), [({"val_share": 0.2}, "run"), ({}, "train/run"), ({}, "val")])
@pytest.mark.parametrize("script", [finetune, pretrain])
def test_an_output_among_the_images_is_refused(
    script: ModuleType, options: dict[str, float], output: str, tmp_path: Path
) -> None:
    """It would be a class, or its pictures be trained on, when the run goes on."""
    config = script.Config(data=tmp_path, output=tmp_path / output, device="cpu", **options)
    with pytest.raises(SettingsError, match=rf"--output {tmp_path}/{output} lies among the images of {tmp_path}"):
        script.train(config, QUIET)


def write_list_of(path: Path, labels: str) -> Path:
    lines = (f"{path.parent}/data/bee/{index}.png,{label}\n" for index, label in enumerate(labels))
    path.write_text("".join(["image,label\n", *lines]))
    return path
