"""Large JPEGs are decoded at a fraction of their size, wherever a transform says how much of it is needed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import training.data
import training.explain
import training.images
from models import ModelConfig
from training.augment import AugmentConfig, TwoViews, eval_transform, train_transform
from training.data import Unlabelled, image_folder
from training.explain import find_images
from training.images import Transform, load_image
from training.masking import MaskedImages, MaskGenerator, pretrain_transform

CONFIG = ModelConfig("replknet_nano", 2, image_size=32, crop_pct=0.875)
LARGER = replace(CONFIG, image_size=96)
WIDTH, HEIGHT = 1600, 1200


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    (tmp_path / "label").mkdir()
    path = tmp_path / "label" / "0.jpg"
    Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path, quality=90)
    return path


@pytest.mark.parametrize(
    ("transform", "part"),
    [
        (eval_transform(CONFIG), 8),  # 1200 / 8 is more than 2.25 times 36
        (eval_transform(LARGER), 4),  # by 8 it would be more than 109, and less than 2.25 times that
        (train_transform(CONFIG, AugmentConfig("none")), 8),
        (train_transform(LARGER, AugmentConfig("none")), 4),
        (train_transform(CONFIG, AugmentConfig("crop", min_crop_area=0.08)), 8),  # 1200 / 8 sqrt(0.08 x 3/4) is 37
        (train_transform(CONFIG, AugmentConfig("crop", min_crop_area=0.05)), 4),  # by 8 it would be 29
        (TwoViews(train_transform(CONFIG, AugmentConfig("crop", min_crop_area=0.05))), 4),
        (pretrain_transform(CONFIG, 0.67, flip=True), 8),
        (Transform([lambda image: image]), 1),
    ],
    ids=[
        *("evaluation", "larger evaluation", "none", "larger", "crop", "small crops"),
        *("two views", "pretrain", "not said"),
    ],
)
def test_as_far_as_the_transform_allows(photograph, transform, part, monkeypatch):
    sizes = []

    def spy(*arguments, **named):
        image = original(*arguments, **named)
        sizes.append(image.size)
        return image

    original = training.images.read_image
    for module in (training.images, training.explain):
        monkeypatch.setattr(module, "read_image", spy)
    folder = photograph.parents[1]
    image_folder(folder, transform)[0]
    if not isinstance(transform, TwoViews):
        MaskedImages(Unlabelled(folder), transform, MaskGenerator(32, 16, 0.5))[0]
        list(find_images(folder, 1, transform))
        list(find_images(photograph, 1, transform))
    assert set(sizes) == {(WIDTH // part, HEIGHT // part)}
    assert len(sizes) == (1 if isinstance(transform, TwoViews) else 4)


def test_the_reduced_image_is_the_same_picture(photograph):
    whole, reduced = (load_image(str(photograph), short_side=side) for side in (None, 150))
    expected, found = (np.asarray(image.resize((80, 60)), float) for image in (whole, reduced))
    assert np.abs(found - expected).mean() < 0.05 * expected.std()


def test_other_files_and_sizes_are_decoded_in_full(photograph, tmp_path):
    with Image.open(photograph) as image:
        image.save(tmp_path / "0.png")
        image.resize((WIDTH + 1, HEIGHT)).save(tmp_path / "1.jpg")
    assert load_image(str(tmp_path / "0.png"), short_side=100).size == (WIDTH, HEIGHT)
    assert load_image(str(tmp_path / "1.jpg"), short_side=100).size == (WIDTH + 1, HEIGHT)
    assert load_image(str(photograph), short_side=HEIGHT // 2 + 1).size == (WIDTH, HEIGHT)
