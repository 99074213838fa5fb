"""Photographs to send: scikit-learn's two, at sizes that cameras make."""

import functools
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

SIZES = {"JPEG of 12 MP": (4032, 3024), "JPEG of 2 MP": (1632, 1224)}
JPEG_BYTES = 120_000
OCTAVE_SHARE = 0.5  # of the photograph's own contrast
SENSOR_NOISE = 2.0  # grey levels


def detailed(photograph: np.ndarray, width: int, height: int) -> Image.Image:
    """A photograph [h,w,3] of uint8 enlarged, with detail down to single pixels.

    It is enlarged by Lanczos. Its fine detail (what a four times smaller copy lacks) is then added in mirrored tiles
    at scales 1, 2, 4 and so on, with noise like a sensor's. Without them the picture would be smooth, so that every
    decoder looked right, and its file small, so that every decoder looked fast.
    """
    source = Image.fromarray(photograph)
    small = source.resize((source.width // 4, source.height // 4), Image.Resampling.BOX)
    detail = photograph.astype(np.float32) - np.asarray(small.resize(source.size, Image.Resampling.BICUBIC))
    tile = np.concatenate([detail, detail[:, ::-1]], axis=1)
    tile = np.concatenate([tile, tile[::-1]], axis=0)
    picture = np.asarray(source.resize((width, height), Image.Resampling.LANCZOS)).astype(np.float32)
    scale = 1
    while scale * source.width <= width:
        layer = np.tile(tile, (-(-height // (scale * len(tile))), -(-width // (scale * tile.shape[1])), 1))
        layer = layer.repeat(scale, axis=0).repeat(scale, axis=1)[:height, :width]
        picture += OCTAVE_SHARE * layer
        scale *= 2
    picture += np.random.default_rng(0).normal(0, SENSOR_NOISE, picture.shape)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@functools.cache
def photograph() -> bytes:
    """A JPEG of about 120 kB: one of scikit-learn's photographs, enlarged."""
    from export.parity import sample_photographs

    image = Image.open(sample_photographs()[0]).convert("RGB").resize((960, 640))
    candidates = (encoded(image, "JPEG", quality=quality) for quality in range(50, 96))
    return min(candidates, key=lambda data: abs(len(data) - JPEG_BYTES))


@functools.cache
def turned() -> list[bytes]:
    """`photograph` and three that differ from it, so that a server that mixes up answers is detected."""
    image = Image.open(io.BytesIO(photograph()))
    ways = (Image.Transpose.ROTATE_180, Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)
    return [photograph(), *(encoded(image.transpose(way), "JPEG", quality=85) for way in ways)]


def enlarged(width: int, height: int) -> list[bytes]:
    """JPEG files of the photographs at this size."""
    from sklearn.datasets import load_sample_images

    return [encoded(detailed(one, width, height), "JPEG", quality=90) for one in load_sample_images().images]


def files() -> Iterator[tuple[str, list[bytes]]]:
    """Yield (kind, its files), one file for each photograph."""
    from sklearn.datasets import load_sample_images

    for name, size in SIZES.items():
        yield name, enlarged(*size)
    yield "JPEG of 960x640, 120 KB", [photograph()]
    yield "PNG of 640x427", [encoded(Image.fromarray(one), "PNG") for one in load_sample_images().images]
