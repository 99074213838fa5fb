"""Images: which files are read, and how; and a data set of labelled ones."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image
from PIL.ExifTags import Base
from PIL.Image import Transpose
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import v2

from models.files import HIDDEN, files_below
from training.names import Names

IMAGE_SUFFIXES = (*IMG_EXTENSIONS, ".jfif")  # .jpg, .png, ...: read in folders and shards, by every script
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # TIFF's tags
UPRIGHT = {  # EXIF's orientation -> what turns it upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


class DataError(ValueError):
    """A folder or an image that cannot be trained on; the message names the path."""


def is_image(path: str, folder: str = "", passed_over: Counter[str] | None = None) -> bool:
    """Whether a file below `folder` is read: by its suffix, and neither hidden nor in a hidden folder.

    `passed_over` counts what is neither read nor hidden, by suffix.
    """
    if HIDDEN.search(path, len(folder)):
        return False
    read = path.lower().endswith(IMAGE_SUFFIXES)
    if not read and passed_over is not None:
        passed_over[os.path.splitext(path)[1].lower() or "without a suffix"] += 1
    return read


def image_files(folder: Path, passed_over: Counter[str]) -> list[str]:
    """Every image of `files_below`, in order.

    Raises `OSError` for a folder that cannot be read.
    """
    root = str(folder)
    return sorted(path for path in files_below(folder, _raise) if is_image(path, root, passed_over))


def _raise(error: OSError) -> None:
    raise error


class Transform(v2.Compose):
    """The composition of `steps` on a PIL RGB image; `short_side` is that of `read_image`."""

    def __init__(self, steps: Sequence[Callable[[Any], Any]], short_side: int | None = None) -> None:
        super().__init__(steps)
        self.short_side = short_side


def load_image(file: str | BytesIO, name: str | None = None, short_side: int | None = None) -> Image.Image:
    """Read as `read_image`; errors also say what to do in a run that has begun."""
    try:
        return read_image(file, name, short_side)
    except DataError as error:
        what = "replace it, or remove it and begin a new run (python -m training.check DATA lists all such files)"
        raise DataError(f"{error}: {what}") from error


def read_image(file: str | BytesIO, name: str | None = None, short_side: int | None = None) -> Image.Image:
    """Read an RGB image, upright, from a path or from a file in memory called `name`.

    `short_side`: see `reduce`; None: decode in full.

    Raises `DataError` if it is not a complete image, or has pixels whose range is not known.
    """
    try:
        with Image.open(file) as image:
            unsaid = bits_without_a_range(image)
            if not unsaid:
                if short_side is not None:
                    reduce(image, short_side)
                image.load()
                turn = UPRIGHT.get(orientation(image))
                return to_rgb(image) if turn is None else to_rgb(image).transpose(turn)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly everything on damaged bytes
        raise DataError(f"{name or file} cannot be decoded ({error})") from error
    raise DataError(f"{name or file} has {unsaid} (scale it to 8 or 16 bits, of which 0 is black)")


def reduce(image: Image.Image, short_side: int) -> None:
    """Set a JPEG to be decoded at a half, quarter or eighth of its size (libjpeg's scaled decoding), if that divides
    both sides (a remainder would shift the picture) and the shorter side keeps `short_side` pixels.
    """
    for part in (8, 4, 2):
        if min(image.size) >= part * short_side and not any(side % part for side in image.size):
            image.draft(None, (image.width // part, image.height // part))
            return


def orientation(image: Image.Image) -> int:
    """Return a loaded image's EXIF orientation, 1 to 8; damaged data count as 1, as in the served `preprocess`."""
    try:
        return int(image.getexif().get(Base.Orientation, 1))
    except Exception:
        return 1


def bits_without_a_range(image: Image.Image) -> str:
    """Name pixels that are not of 8 or 16 unsigned bits, else "". Pillow opens 16-bit PNG as I or I;16, PGM as I."""
    if image.mode == "F":
        return "pixels in floating point, whose range is not known"
    if image.format == "TIFF" and image.mode.startswith("I"):
        tags = cast(Any, image).tag_v2
        bits = tags.get(BITS_PER_SAMPLE, (1,))[0]
        if image.mode == "I" or bits != 16:
            return f"{'signed ' if bits == 16 else ''}pixels of {bits} bits, whose range is not known"
        if tags.get(PHOTOMETRIC) == 0:  # Pillow inverts them at 8 bits, not at 16
            return "16-bit pixels of which 0 is white"
    return ""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert as the served `preprocess` does: 16-bit grey keeps its high byte; PIL's own conversion would clip it."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def label_numbers(labels: Sequence[str]) -> dict[str, int]:
    """Map each label to its index, equal ones to the first: to search a list of thousands for each would be slow."""
    return {label: number for number, label in reversed(list(enumerate(labels)))}


class Labelled(Dataset[tuple[Any, int]]):
    """A data set of (image, class index). `names`: the file of each image, or SHARD:MEMBER.

    `transform`, if any, is applied to what `loader(source, name, short_side)` returns.
    """

    def __init__(self, transform: Transform | None) -> None:
        self.transform, self.loader = transform, load_image
        self.names: Sequence[str] = Names([])
        self.targets: list[int] = []
        self.classes: list[str] = []

    def __len__(self) -> int:
        return len(self.names)

    def source(self, index: int) -> str | BytesIO:
        """What the image is read from."""
        return self.names[index]

    def image(self, index: int, short_side: int | None) -> Image.Image:
        return self.loader(self.source(index), self.names[index], short_side)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if self.transform is None:
            return self.image(index, None), self.targets[index]
        return self.transform(self.image(index, self.transform.short_side)), self.targets[index]
