"""The data sets, written once: real images out of installed packages; nothing is downloaded."""

from pathlib import Path

import numpy as np

from benchmarks.evidence.run import Data
from models.files import staged_folder
from training.long_tail import long_tail_subset
from training.samples import write_digits, write_photos

CLASSES = 10
EPOCH = 700  # files of an epoch of a small set: each of its images is listed so often that the sets have equal epochs


def prepare(data: Data, root: Path) -> Path:
    """ROOT/NAME with train/ and val/; val/ is always the same 359 digits (of the photographs: what train/ has not)."""
    folder = root / data.name
    if data.kind == "digits":
        return write_digits(folder)
    if data.kind == "photos":
        return write_photos(folder, tile=64, step=64)
    if folder.exists():
        return folder
    digits = write_digits(root / "digits")
    paths = sorted((digits / "train").glob("*/*.png"))
    targets = [int(path.parent.name) for path in paths]
    if data.kind == "labels":
        chosen, times = balanced_subset(targets, data.size, data.seed), EPOCH // (CLASSES * data.size)
    else:
        chosen, times = long_tail_subset(targets, CLASSES, data.size, data.seed), 1
    with staged_folder(folder) as staging:
        for path in (paths[index] for index in chosen):
            place = staging / "train" / path.parent.name
            place.mkdir(parents=True, exist_ok=True)
            for copy in range(max(1, times)):
                (place / f"{path.stem}_{copy:02d}.png").symlink_to(path.resolve())
        (staging / "val").symlink_to((digits / "val").resolve())
    return folder


def balanced_subset(targets: list[int], size: int, seed: int) -> list[int]:
    """Indices of `size` images of each class, drawn by `seed`. Raises `ValueError` for a class that has fewer."""
    labels, random = np.asarray(targets), np.random.RandomState(seed)
    chosen: list[int] = []
    for target in np.unique(labels):
        members = np.flatnonzero(labels == target)
        if len(members) < size:
            raise ValueError(f"class {target} has {len(members)} images: {size} of each were asked for")
        chosen += random.permutation(members)[:size].tolist()
    return sorted(chosen)
