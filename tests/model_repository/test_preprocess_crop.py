"""The crop takes the right part of the picture, as its pixels show."""

import io
import math

import numpy as np
import pytest
from PIL import Image

SIDE = 64


def slopes(width, height, kind, orientation):
    """Red grows from left to right, green from top to bottom, of the upright picture."""
    x = np.broadcast_to((np.arange(width) + 0.5) / width, (height, width))
    y = np.broadcast_to((np.arange(height)[:, None] + 0.5) / height, (height, width))
    upright = np.round(255 * np.stack([x, y, np.zeros_like(x)], -1)).astype(np.uint8)
    stored = np.rot90(upright) if orientation == 6 else upright  # 6: to be turned clockwise
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stored)).save(buffer, kind, quality=100, subsampling=0, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("size", [(200, 200), (320, 150), (150, 320), (801, 603), (50, 40)])
@pytest.mark.parametrize("crop_pct", [0.5, 0.875, 1.0, 1.25])  # above 1 it is padded
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_the_crop_is_what_the_pixels_show(transform, crop_mode, crop_pct, size, orientation):
    resize = math.floor(SIDE / crop_pct)
    settings = transform.Settings(SIDE, resize, "bilinear", crop_mode=crop_mode, fill=(0, 0, 255))
    kind = "JPEG" if size[0] > 800 else "PNG"  # that one is decoded at a reduced size
    pixels, crop = transform.prepare(slopes(*size, kind, orientation), settings)
    left, upper, right, lower = crop.tolist()
    place = (np.arange(SIDE) + 0.5) / SIDE
    x, y = left + place * (right - left), upper + place * (lower - upper)
    shown = pixels[:, :, 2] < 128
    np.testing.assert_array_equal(shown, ((y > 0) & (y < 1))[:, None] & ((x > 0) & (x < 1)))
    red, green = np.broadcast_arrays(255 * x, (255 * y)[:, None])
    inner = shown & (red > 8) & (red < 247) & (green > 8) & (green < 247)  # at a border the filter is one-sided
    assert inner.any()
    assert abs(pixels[:, :, 0] - red)[inner].max() < 3
    assert abs(pixels[:, :, 1] - green)[inner].max() < 3
