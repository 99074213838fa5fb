"""Images to train on that come with installed packages, written as files once; nothing is downloaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from models.files import staged_folder
from training.images import DataError


def write_digits(folder: str | Path) -> Path:
    """scikit-learn's 1,797 handwritten digits (UCI, 8 x 8 pixels, 17 grey levels) as PNG files, written once.

    FOLDER/{train,val}/{0..9}/NUMBER.png: of every class the same 20 % are held out on every machine. Writers of the
    digits appear in both halves, as in every common use of this set. Raises `DataError` if FOLDER holds other files.
    """
    from sklearn.datasets import load_digits

    folder = Path(folder)
    images, targets = load_digits(return_X_y=True)
    if folder.exists():
        found = sum(1 for _ in folder.glob("*/*/*.png"))
        if found != len(images):
            raise DataError(f"{folder} holds {found} of the {len(images)} digits: remove it to have it written again")
        return folder
    held_out = _held_out(targets)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    with staged_folder(folder) as staging:
        for number, (image, target) in enumerate(zip(pixels, targets, strict=True)):
            path = staging / ("val" if number in held_out else "train") / str(target) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


def _held_out(targets: np.ndarray) -> set[int]:
    """Indices of a fifth of every class; RandomState's stream is frozen across versions of NumPy."""
    random = np.random.RandomState(0)
    chosen: set[int] = set()
    for target in np.unique(targets):
        members = random.permutation(np.flatnonzero(targets == target))
        chosen.update(members[: round(0.2 * len(members))].tolist())
    return chosen


def write_photos(folder: Path, tile: int = 128, step: int = 32) -> Path:
    """Tiles of the photographs that scikit-learn ships (and scikit-image, if it is installed), as PNG, written once.

    FOLDER/train has overlapping tiles of the left four fifths of each photograph, FOLDER/val tiles of the rest: no
    pixel is in both. Raises `DataError` if FOLDER holds something else.
    """
    if folder.exists():
        if not (folder / "train").is_dir() or not (folder / "val").is_dir():
            raise DataError(f"{folder} holds no train/ and val/: remove it to have the photographs written again")
        return folder
    with staged_folder(folder) as staging:
        for name, photo in photographs().items():
            split = photo.shape[1] * 4 // 5
            for part, left, right in (("train", 0, split), ("val", split, photo.shape[1])):
                _write_tiles(staging / part, name, photo, left, right, tile, step)
    return folder


def _write_tiles(folder: Path, name: str, photo: np.ndarray, left: int, right: int, tile: int, step: int) -> None:
    """Squares of the columns left..right, the largest that fit if `tile` does not."""
    folder.mkdir(parents=True, exist_ok=True)
    side = min(tile, photo.shape[0], right - left)
    for y in range(0, photo.shape[0] - side + 1, step):
        for x in range(left, right - side + 1, step):
            cut = Image.fromarray(np.ascontiguousarray(photo[y : y + side, x : x + side]))
            cut.save(folder / f"{name}_{y:04d}_{x:04d}.png")


def photographs() -> dict[str, np.ndarray]:
    """The photographs of the installed packages: name -> uint8 [H,W,3]."""
    from sklearn.datasets import load_sample_images

    bunch = cast(Any, load_sample_images())
    photos = {Path(name).stem: image for name, image in zip(bunch.filenames, bunch.images, strict=True)}
    try:
        from skimage import data
    except ImportError:
        return photos
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photos[name] = getattr(data, name)()[:, :, :3]
    return photos


WRITERS: dict[str, Callable[[Path], Path]] = {"digits": write_digits, "photos": write_photos}  # by preset
