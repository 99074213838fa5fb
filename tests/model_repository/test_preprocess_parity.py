"""The served pixels are timm's evaluation pixels, bit for bit."""

import io
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform

BIG = 300  # pixels
MEAN = (0.485, 0.456, 0.406)
FILL = (124, 116, 104)  # of border: the mean, in levels


def picture(width, height, seed=0):
    """Smooth colours with noise: resampling errors show everywhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], axis=-1)
    return Image.fromarray((base * 0.7 + rng.integers(0, 77, base.shape)).astype(np.uint8))


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def timm_pixels(image, image_size, crop_pct, interpolation, crop_mode="center"):
    transform = create_transform(
        (3, image_size, image_size),
        is_training=False,
        use_prefetcher=True,
        interpolation=interpolation,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        mean=MEAN,
    )
    return np.asarray(transform(image.convert("RGB"))).transpose(1, 2, 0)  # [S,S,3]


def check(transform, data, image_size, crop_pct, interpolation, crop_mode="center"):
    fill = FILL if crop_mode == "border" else (0, 0, 0)
    settings = transform.Settings(
        image_size, math.floor(image_size / crop_pct), interpolation, crop_mode=crop_mode, fill=fill
    )
    expected = timm_pixels(Image.open(io.BytesIO(data)), image_size, crop_pct, interpolation, crop_mode)
    actual = transform.preprocess(data, settings)
    assert actual.shape == (image_size, image_size, 3)
    assert actual.dtype == np.uint8
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.95, 1.0])
@pytest.mark.parametrize(
    "size", [(224, 224), (257, 256), (256, 257), (640, 480), (333, 500), (30, 41), (1, 1), (7, 300)]
)
def test_sizes(transform, size, crop_pct, interpolation):
    check(transform, encode(picture(*size)), 224, crop_pct, interpolation)


@pytest.mark.parametrize("crop_mode", ["squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
@pytest.mark.parametrize("size", [(224, 224), (257, 256), (640, 480), (333, 500), (30, 41), (1, 1), (7, 300)])
def test_the_other_crop_modes_of_timm(transform, size, crop_pct, crop_mode):
    check(transform, encode(picture(*size)), 224, crop_pct, "bicubic", crop_mode)
    check(transform, encode(picture(*size)), 33, crop_pct, "bilinear", crop_mode)


def test_a_sliver_in_border_is_one_pixel_wide(transform):  # timm rounds it to none and fails
    settings = transform.Settings(32, 32, "bicubic", crop_mode="border", fill=(1, 2, 3))
    pixels = transform.preprocess(encode(picture(1, 2000)), settings)
    assert (pixels == (1, 2, 3)).all(axis=(0, 2)).sum() == 31


@given(
    width=st.integers(1, BIG),
    height=st.integers(1, BIG),
    image_size=st.integers(2, 64),
    crop_pct=st.sampled_from([0.8, 0.9, 1.0, 1.3]),  # above 1: timm resizes below the crop and pads
)
@hypothesis_settings(max_examples=150, deadline=None)
def test_any_size(transform, width, height, image_size, crop_pct):
    check(transform, encode(picture(width, height)), image_size, crop_pct, "bicubic")


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {"quality": 90}), ("JPEG", {"quality": 50, "progressive": True}), ("WEBP", {}), ("BMP", {})],
)
def test_formats(transform, kind, options):
    check(transform, encode(picture(321, 201), kind, **options), 64, 0.875, "bicubic")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes_are_convert_rgb(transform, mode):
    check(transform, encode(picture(90, 70).convert(mode)), 64, 0.9, "bicubic")


def test_cmyk_jpeg(transform):
    check(transform, encode(picture(90, 70).convert("CMYK"), "JPEG", quality=95), 64, 0.9, "bicubic")
