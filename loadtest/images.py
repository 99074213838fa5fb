"""The real pictures that the users send."""

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path

from client import find_images

LIMIT = 500  # images of a folder
# Longer side in pixels : images of that size in 20. Thumbnails, pages, phone screens, cameras of 1 and 12 megapixels.
SIZES = "320:6,640:7,1280:4,1920:2,4000:1"
QUALITIES = (75, 85, 92)
GRAIN = 6.0  # grey levels, standard deviation: noise that gives an enlarged picture a camera's bytes per pixel


def parse_sizes(text: str) -> list[tuple[int, int]]:
    """Parse ``"320:6,640:7"`` into [(320, 6), (640, 7)]. Raises `ValueError`."""
    try:
        sizes = [(int(side), int(count)) for side, count in (part.split(":") for part in text.split(","))]
    except ValueError:
        sizes = []
    if not sizes or any(not 16 <= side <= 8000 or not 1 <= count <= 1000 for side, count in sizes):
        raise ValueError(f"sizes are {text!r}: write longer side:count, for example {SIZES} (16 to 8000 pixels)")
    return sizes


def find_below(folder: str | Path) -> list[Path]:
    """The images in a folder. Raises `ValueError` where there are none."""
    paths = find_images(folder, unread=[])
    if not paths:
        raise ValueError(f"no image below {folder}: name another folder with --images")
    return paths


def photographs() -> list[Path]:
    """The photographs that scikit-learn ships. Raises `FileNotFoundError`."""
    package = importlib.util.find_spec("sklearn")  # looked up, not imported
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError("no photographs (scikit-learn is not installed): name a folder with --images")
    folder = Path(package.submodule_search_locations[0], "datasets", "images")
    if not (paths := find_images(folder, unread=[])):
        raise FileNotFoundError(f"no photographs (this scikit-learn has none in {folder}): name a folder with --images")
    return paths


def load_images(folder: Path | None = None, sizes: str = "") -> list[bytes]:
    """Encoded images: up to 500 of `folder`, evenly picked, unchanged; else photographs in the mix of `sizes`.

    With both, the folder's images are resized in turn. Raises `FileNotFoundError`, `ValueError`.
    """
    if folder is None:
        return resized(photographs(), parse_sizes(sizes or SIZES))
    paths = find_below(folder)
    if sizes:
        return resized(paths, parse_sizes(sizes))
    step = max(1.0, len(paths) / LIMIT)
    return [paths[int(number * step)].read_bytes() for number in range(min(LIMIT, len(paths)))]


def resized(paths: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return JPEGs of `sizes` (pixels of the longer side, count), made from `paths` in turn; the same at every call.

    Raises `ValueError` for a picture that cannot be decoded.
    """
    import numpy as np
    from PIL import Image

    encoded: list[bytes] = []
    tile = np.random.default_rng(0).normal(0, GRAIN, (512, 512, 1)).astype(np.int16)
    for side, count in sizes:
        for _ in range(count):
            path = paths[len(encoded) % len(paths)]
            try:
                with Image.open(path) as image:
                    picture = image.convert("RGB")
            except MemoryError:
                raise
            except Exception as error:  # decoders raise nearly everything on damaged bytes
                raise ValueError(f"{path} cannot be decoded ({error}): remove it, or leave --sizes out") from error
            scale = side / max(picture.size)
            width, height = (max(1, round(scale * length)) for length in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            if scale > 1:
                grain = np.tile(tile, (height // 512 + 1, width // 512 + 1, 1))[:height, :width]
                picture = Image.fromarray((np.asarray(picture) + grain).clip(0, 255).astype(np.uint8))
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=QUALITIES[len(encoded) % len(QUALITIES)])
            encoded.append(buffer.getvalue())
    return encoded
