"""Folders of images: FOLDER/train/LABEL/* and FOLDER/val/LABEL/*; the digits that the demo learns."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from models import ModelConfig

Augmentation = Literal["affine", "crop"]
Transform = Callable[[Image.Image], Tensor]


class DataError(ValueError):
    """A folder or an image that cannot be trained on; the message names the path."""


def eval_transform(config: ModelConfig) -> Transform:
    """PIL RGB -> normalised float32 [3,S,S], from the very pixels that the served `preprocess` makes.

    The shorter side becomes floor(image_size / crop_pct) with the aspect kept, then the centre is cut out (timm's
    evaluation).
    """
    resize = v2.Resize(math.floor(config.image_size / config.crop_pct), InterpolationMode(config.interpolation))
    return v2.Compose([resize, v2.CenterCrop(config.image_size), *_to_normalised(config)])


def train_transform(config: ModelConfig, augmentation: Augmentation) -> Transform:
    """PIL RGB -> normalised float32 [3,S,S], varied.

    "affine": a small rotation, shift, scale and shear, for pictures whose left and right differ, such as digits.
    "crop": a random crop of 25 to 100 % of the area, and a mirror image half the time, for photographs.
    """
    size, mode = config.image_size, InterpolationMode(config.interpolation)
    if augmentation == "affine":
        affine = v2.RandomAffine(10, (0.08, 0.08), (0.9, 1.1), (-8, 8), InterpolationMode.BILINEAR)
        return v2.Compose([v2.Resize(size, mode), v2.CenterCrop(size), affine, *_to_normalised(config)])
    crop = v2.RandomResizedCrop(size, scale=(0.25, 1.0), interpolation=mode)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), *_to_normalised(config)])


def _to_normalised(config: ModelConfig) -> list[Any]:
    return [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(config.mean, config.std)]


def load_image(path: str) -> Image.Image:
    """RGB, upright. Raises `DataError` for a file that is no whole image."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be decoded ({error}): replace or remove it") from error


def image_folder(folder: str | Path, transform: Transform | None, labels: list[str] | None = None) -> ImageFolder:
    """(image, class index) of FOLDER/LABEL/*; `labels` fixes the order of the classes, else it is alphabetical.

    Raises `DataError` for a folder that is missing, a class without images, or a label that is not in `labels`.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is no folder: images are expected in {folder}/LABEL/FILE")
    try:
        dataset = ImageFolder(str(folder), transform=transform, loader=load_image)
    except FileNotFoundError as error:
        raise DataError(f"{folder}: {error}") from error
    if labels is not None:
        unknown = [name for name in dataset.classes if name not in labels]
        if unknown:
            raise DataError(f"{folder}/{unknown[0]} is not one of the {len(labels)} labels: {', '.join(labels[:20])}")
        index = [labels.index(name) for name in dataset.classes]
        dataset.samples = dataset.imgs = [(path, index[target]) for path, target in dataset.samples]
        dataset.targets = [target for _, target in dataset.samples]
        dataset.classes, dataset.class_to_idx = labels, {name: i for i, name in enumerate(labels)}
    return dataset


def make_loader(
    dataset: Dataset[Any], batch_size: int, *, train: bool, workers: int, seed: int = 0, pin_memory: bool = False
) -> DataLoader[Any]:
    """Batches (images [B,3,S,S], targets [B]). Training shuffles by `seed` and leaves out an incomplete last batch."""
    return DataLoader(
        dataset,
        batch_size,
        shuffle=train,
        drop_last=train and len(cast(Any, dataset)) >= batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed),
    )


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
            raise DataError(f"{folder} holds {found} of the {len(images)} digits: remove it, and it is written again")
        return folder
    held_out = _held_out(targets)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for number, (image, target) in enumerate(zip(pixels, targets, strict=True)):
            path = staging / ("val" if number in held_out else "train") / str(target) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _held_out(targets: np.ndarray, share: float = 0.2) -> set[int]:
    """Indices of `share` of every class; RandomState's stream is frozen across versions of NumPy."""
    random = np.random.RandomState(0)
    chosen: set[int] = set()
    for target in np.unique(targets):
        members = random.permutation(np.flatnonzero(targets == target))
        chosen.update(members[: round(share * len(members))].tolist())
    return chosen
