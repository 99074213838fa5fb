"""A network is served the very pixels that it was evaluated on in training, whatever the file's mode."""

import io
import math

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from models import ModelConfig
from training.augment import eval_transform
from training.images import load_image

CONFIG = ModelConfig("replknet_nano", 2, image_size=32, crop_pct=0.875)
SIXTEEN_BIT = np.random.default_rng(0).integers(0, 65536, (41, 53)).astype(np.uint16)
COLOUR = Image.fromarray(np.random.default_rng(1).integers(0, 256, (41, 53, 3), dtype=np.uint8))
FILES = {
    "16-bit grey": (Image.fromarray(SIXTEEN_BIT), "PNG", 1),
    "16-bit grey on its side": (Image.fromarray(SIXTEEN_BIT), "PNG", 6),
    "grey": (COLOUR.convert("L"), "PNG", 1),
    "black and white": (COLOUR.convert("1"), "PNG", 1),
    "alpha": (COLOUR.convert("RGBA"), "PNG", 1),
    "grey with alpha": (COLOUR.convert("LA"), "PNG", 1),
    "palette": (COLOUR.convert("P"), "PNG", 3),
    "CMYK": (COLOUR.convert("CMYK"), "JPEG", 8),
    "colour": (COLOUR, "JPEG", 5),
}


@pytest.mark.parametrize("name", FILES)
def test_training_and_serving_see_the_same_pixels(transform, name):
    image, kind, orientation = FILES[name]
    exif = Image.Exif()
    exif[transform.EXIF_ORIENTATION] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif)
    settings = transform.Settings(32, math.floor(32 / CONFIG.crop_pct), CONFIG.interpolation)
    resize_and_crop = v2.Compose(eval_transform(CONFIG).transforms[:2])
    trained = np.asarray(resize_and_crop(load_image(file)))
    np.testing.assert_array_equal(transform.preprocess(file.getvalue(), settings), trained)


@pytest.mark.parametrize(("size", "reduced"), [((800, 600), (200, 150)), ((1000, 648), (125, 81)), ((801, 600), None)])
@pytest.mark.parametrize("orientation", [1, 6])
def test_training_and_serving_reduce_large_jpegs_alike(transform, size, reduced, orientation):
    """Turned before the resize or behind it they may differ by the rounding; what is not divided is decoded in full."""
    exif = Image.Exif()
    exif[transform.EXIF_ORIENTATION] = orientation
    file = io.BytesIO()
    COLOUR.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", exif=exif, quality=90)
    steps = eval_transform(CONFIG)
    assert steps.short_side == math.ceil(transform.MARGIN * 36)
    image = load_image(file, None, steps.short_side)
    assert image.size == (reduced or size)[:: 1 if orientation == 1 else -1]
    served = transform.preprocess(file.getvalue(), transform.Settings(32, 36, CONFIG.interpolation)).astype(int)
    trained = np.asarray(v2.Compose(steps.transforms[:2])(image))
    if reduced:
        np.testing.assert_allclose(served, trained, rtol=0, atol=0 if orientation == 1 else 2)


@pytest.mark.parametrize("crop_mode", ["squash", "border"])
def test_training_and_serving_crop_alike(transform, crop_mode):
    config = ModelConfig("replknet_nano", 2, image_size=32, crop_pct=0.875, crop_mode=crop_mode)
    file = io.BytesIO()
    COLOUR.save(file, "PNG")
    settings = transform.Settings(32, 36, config.interpolation, crop_mode=crop_mode, fill=config.fill)
    trained = np.asarray(v2.Compose(eval_transform(config).transforms[:2])(load_image(file)))
    np.testing.assert_array_equal(transform.preprocess(file.getvalue(), settings), trained)


def test_sixteen_bit_grey_keeps_its_high_byte():
    file = io.BytesIO()
    Image.fromarray(SIXTEEN_BIT).save(file, "PNG")
    pixels = np.asarray(load_image(file))
    np.testing.assert_array_equal(pixels, np.repeat((SIXTEEN_BIT >> 8)[..., None], 3, 2))
