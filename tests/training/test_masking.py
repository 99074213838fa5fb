"""SimMIM's masks, images without labels, and the photographs that come with packages."""

import io
import math
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from models import ModelConfig
from training.augment import eval_transform
from training.data import Unlabelled, image_folder
from training.images import DataError
from training.masking import MaskedImages, MaskGenerator, pretrain_transform
from training.pretrain_config import PRESETS
from training.samples import write_photos
from training.settings import SettingsError
from training.shards import NO_CLASS

CONFIG = ModelConfig("replknet_nano", 1, image_size=32, mean=[0.5] * 3, std=[0.5] * 3)


@pytest.mark.parametrize(("size", "count", "of"), [(192, 22, 36), (224, 30, 49)])
def test_mask_counts_are_the_published_ones(size: int, count: int, of: int) -> None:
    generator = MaskGenerator(size, 32, 0.6)
    for _ in range(20):
        mask = generator()
        assert mask.dtype == torch.bool
        assert mask.numel() == of
        assert mask.sum() == count == math.ceil(of * 0.6)


def test_the_page_counts_the_squares_of_the_presets() -> None:
    page = (Path(__file__).parents[2] / "docs" / "pretraining.md").read_text()
    for name in ("photos", "digits"):
        preset = PRESETS[name]
        masks = MaskGenerator(preset.image_size, preset.mask_patch, preset.mask_ratio)
        assert f"`{name}` has {masks.count} of {masks.side**2}" in page
        assert re.search(rf"\| {name} \| .*, {preset.image_size} px, {preset.mask_patch}-pixel squares", page)


def test_masks_are_upstreams_for_the_same_seed() -> None:
    """Zeros, ones at the first of a permutation, reshaped."""
    generator = MaskGenerator(192, 32, 0.6)
    for seed in range(5):
        np.random.seed(seed)
        expected = np.zeros(36, dtype=int)
        expected[np.random.permutation(36)[:22]] = 1
        np.random.seed(seed)
        assert np.array_equal(generator().numpy(), expected.reshape(6, 6))


def test_every_patch_is_masked_equally_often() -> None:
    np.random.seed(0)
    generator = MaskGenerator(128, 32, 0.5)
    share = torch.stack([generator() for _ in range(2000)]).float().mean(0)
    assert (share - 0.5).abs().max() < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((192, 40, 0.6), "--mask-patch 40"),
        ((192, 0, 0.6), "--mask-patch 0"),
        ((192, 32, 0.0), "--mask-ratio 0.0"),
        ((32, 32, 0.6), "--mask-patch 32, --mask-ratio 0.6: all 1 patches"),
        ((192, 32, 0.98), "--mask-ratio 0.98: all 36 patches of the image of 192 pixels would be masked"),
    ],
)
def test_impossible_masks_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        MaskGenerator(*arguments)


def test_images_behind_a_linked_folder_are_found_as_in_training(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "cat").symlink_to(tmp_path / "elsewhere")
    assert len(image_folder(tmp_path / "train", None)) == len(Unlabelled(tmp_path / "train")) == 1


def test_a_link_to_a_parent_folder_brings_no_image_twice(tmp_path: Path) -> None:
    (tmp_path / "train" / "cat").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "train" / "cat" / "a.png")
    (tmp_path / "train" / "cat" / "again").symlink_to("../cat")
    assert list(image_folder(tmp_path / "train", None).names) == [f"{tmp_path}/train/cat/a.png"]
    assert len(Unlabelled(tmp_path / "train")) == 1


def test_a_link_into_a_hidden_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / ".cache" / "cat").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / ".cache" / "cat" / "a.png")
    (tmp_path / "cat").symlink_to(".cache/cat")
    assert len(Unlabelled(tmp_path)) == len(image_folder(tmp_path, None)) == 1


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cat" / "secret").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "cat" / "a.png")
    real = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for read in (Unlabelled, lambda folder: image_folder(folder, None)):
        with pytest.raises(PermissionError, match="secret"):
            read(tmp_path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, place in enumerate(("a", "a/b", ".")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / place / f"{number}.png")
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_images_at_any_depth_without_labels(images: Path) -> None:
    dataset = Unlabelled(images)
    assert len(dataset) == 3
    assert dataset[0].size == (50, 40)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        Unlabelled(images / "nowhere")
    (images / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no image"):
        Unlabelled(images / "empty")


@pytest.fixture
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Captions in the place of classes, and classes of which 0 and 1 have no image."""
    folder = tmp_path_factory.mktemp("shards")
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        with tarfile.open(folder / f"{number}.tar", "w") as shard:
            shard.add(path, "key.png")
            note = tarfile.TarInfo("key.cls" if number else "key.txt")
            note.size = 1
            shard.addfile(note, io.BytesIO(b"2"))
    (folder / "labels.txt").write_text("only\n")
    return folder


def test_shards_need_no_labels(shards: Path) -> None:
    dataset = Unlabelled(shards)
    assert [dataset[index].size for index in range(len(dataset))] == [(50, 40)] * 3
    assert dataset.shards.classes == []
    assert dataset.shards.targets == [NO_CLASS] * 3
    (shards / "0.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"0\.tar cannot be read"):
        Unlabelled(shards)
    for path in shards.glob("*.tar"):
        tarfile.open(path, "w").close()
    with pytest.raises(DataError, match="its 3 shards hold no image"):
        Unlabelled(shards)


def test_held_out_images_keep_their_masks_and_training_images_do_not(images: Path) -> None:
    masks = MaskGenerator(32, 4, 0.6)
    fixed = MaskedImages(Unlabelled(images), eval_transform(CONFIG), masks, seed=3)
    first, again = fixed[1], fixed[1]
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], fixed[2][1])
    varied = MaskedImages(Unlabelled(images), pretrain_transform(CONFIG, 0.67, flip=True), masks)
    first, again = varied[1], varied[1]
    assert first[0].shape == (3, 32, 32)
    assert not torch.equal(first[0], again[0])
    assert not torch.equal(first[1], again[1])


def test_crops_are_upstreams_for_the_same_seed() -> None:
    """Crops are 3/4 to 4/3 times as wide as high, and bilinear."""
    pixels = np.random.RandomState(0).randint(0, 256, (50, 80, 3), dtype=np.uint8)
    upstreams = transforms.RandomResizedCrop(32, scale=(0.67, 1.0), ratio=(3 / 4, 4 / 3))
    upstreams = transforms.Compose([upstreams, transforms.ToTensor(), transforms.Normalize(CONFIG.mean, CONFIG.std)])
    for seed in range(10):
        torch.manual_seed(seed)
        cropped = pretrain_transform(CONFIG, 0.67, flip=False)(Image.fromarray(pixels))
        torch.manual_seed(seed)
        torch.testing.assert_close(cropped, upstreams(Image.fromarray(pixels)))


@pytest.mark.parametrize("flip", [True, False])
def test_mirror_images_only_where_asked(flip: bool) -> None:
    pixels = np.zeros((32, 32, 3), dtype=np.uint8)
    pixels[:, :16] = 255
    transform = pretrain_transform(CONFIG, 0.9, flip)
    torch.manual_seed(0)
    brighter = [
        bool(image[:, :, :16].mean() > image[:, :, 16:].mean())
        for image in map(transform, [Image.fromarray(pixels)] * 30)
    ]
    assert all(brighter) is not flip


def test_photographs_are_real_and_no_pixel_is_in_both_parts(tmp_path: Path) -> None:
    from sklearn.datasets import load_sample_image

    folder = write_photos(tmp_path / "photos", step=64)
    china = load_sample_image("china.jpg")
    for part in ("train", "val"):
        paths = sorted((folder / part).glob("china_*.png"))
        assert paths
        for path in paths:
            y, x = (int(number) for number in path.stem.split("_")[1:])
            tile = np.asarray(Image.open(path))
            assert np.array_equal(tile, china[y : y + 128, x : x + 128])
            assert (x + 128 <= 512) if part == "train" else (x >= 512)
    before = path.stat().st_mtime_ns
    assert write_photos(folder) == folder
    assert path.stat().st_mtime_ns == before
    (tmp_path / "mine").mkdir()
    with pytest.raises(DataError, match="mine holds no train/ and val/"):
        write_photos(tmp_path / "mine")
