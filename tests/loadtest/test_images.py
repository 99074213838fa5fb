"""The images that are sent: a folder's files as they are, or photographs in a stated mix of sizes."""

import io
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from loadtest import images
from loadtest.images import load_images, parse_sizes


def test_images_are_picked_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(str(number).encode())
    (tmp_path / "notes.txt").write_text("no image")
    assert load_images(tmp_path) == [str(number).encode() for number in range(10)]
    monkeypatch.setattr("loadtest.images.LIMIT", 4)
    assert load_images(tmp_path) == [b"0", b"2", b"5", b"7"]


def test_photographs_in_the_stated_mix() -> None:
    pictures = [Image.open(io.BytesIO(data)) for data in load_images(sizes="64:3,700:1")]
    assert [max(picture.size) for picture in pictures] == [64, 64, 64, 700]
    assert {picture.format for picture in pictures} == {"JPEG"}
    assert load_images(sizes="64:3") == load_images(sizes="64:3")
    assert sum(count for _, count in parse_sizes(images.SIZES)) == 20


def test_only_an_enlarged_picture_gets_grain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a picture of a camera's size would have a thumbnail's bytes."""
    grainy = load_images(sizes="64:1,700:1")
    monkeypatch.setattr(images, "GRAIN", 0.0)
    small, large = load_images(sizes="64:1,700:1")
    assert grainy[0] == small
    assert len(grainy[1]) > 1.2 * len(large)


def test_own_folder_resized(tmp_path: Path) -> None:
    Image.new("RGB", (30, 90), "red").save(tmp_path / "tall.png")
    (data,) = load_images(tmp_path, "45:1")
    assert Image.open(io.BytesIO(data)).size == (15, 45)


@pytest.mark.parametrize("text", ["640", "640:0", "8:1", "640:x", "9000:1", ","])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="longer side:count, for example"):
        parse_sizes(text)


def test_no_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="--images"):
        load_images()


def test_no_photographs_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: package)
    with pytest.raises(FileNotFoundError, match=r"has none in .*: name a folder with --images"):
        load_images()


@pytest.mark.parametrize("fault", ["no picture", "cut off", "too large"])
def test_a_picture_that_cannot_be_resized_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    path = tmp_path / "one.png"
    Image.effect_noise((90, 90), 50).save(path)
    if fault == "too large":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    else:
        path.write_bytes(path.read_bytes()[:1000] if fault == "cut off" else b"no picture")
    with pytest.raises(ValueError, match=r"one\.png cannot be decoded \(.*\): remove it, or leave --sizes out"):
        load_images(tmp_path, "64:1")


def test_capacity_looks_for_the_images_first(
    loadtest: Callable[..., subprocess.CompletedProcess], tmp_path: Path
) -> None:
    (tmp_path / "slo.toml").write_text("[errors]\nrate = 0")
    done = loadtest("capacity", "--slo", str(tmp_path / "slo.toml"), "--images", "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "loadtest: no image below none: name another folder with --images\n"
