"""SimMIM's masks, and images without labels that come with one (Xie et al., CVPR 2022)."""

import math
import os
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from models import ModelConfig
from training.augment import Transform, eval_transform, to_normalised
from training.data import DataError, Unlabelled
from training.randomness import IMAGE, seeded
from training.settings import SettingsError


class MaskGenerator:
    """() -> [image_size // patch_size] * 2 bool, ceil(ratio * patches) of them True: masked.

    Drawn as upstream draws: the first of NumPy's random permutation. Raises `SettingsError` for a patch that does not
    divide the image, or a ratio outside 0..1.
    """

    def __init__(self, image_size: int = 192, patch_size: int = 32, ratio: float = 0.6) -> None:
        if patch_size < 1 or image_size % patch_size:
            raise SettingsError(f"--mask-patch {patch_size}: it must divide the image of {image_size} pixels")
        if not 0.0 < ratio < 1.0:
            raise SettingsError(f"--mask-ratio {ratio}: it is above 0 and below 1")
        self.side = image_size // patch_size
        self.count = math.ceil(self.side**2 * ratio)

    def __call__(self) -> Tensor:
        mask = torch.zeros(self.side**2, dtype=torch.bool)
        mask[torch.from_numpy(np.random.permutation(self.side**2)[: self.count])] = True
        return mask.view(self.side, self.side)


def pretrain_transform(config: ModelConfig, min_crop_area: float, flip: bool) -> Transform:
    """PIL RGB -> normalised [3,S,S]: upstream's random crop, bilinear, and, for photographs, its mirror image."""
    size, mode = config.image_size, InterpolationMode.BILINEAR
    steps: list[Any] = [
        v2.RandomResizedCrop(size, scale=(min_crop_area, 1.0), ratio=(3 / 4, 4 / 3), interpolation=mode)
    ]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    return v2.Compose([*steps, *to_normalised(config)])


class MaskedImages(Dataset[tuple[Tensor, Tensor]]):
    """(image [3,S,S], mask [h',w']). With a `seed` an image has the same mask every time, as evaluation wants."""

    def __init__(self, images: Unlabelled, transform: Transform, masks: MaskGenerator, seed: int | None = None) -> None:
        self.images, self.transform, self.masks, self.seed = images, transform, masks, seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.transform(self.images[index])
        if self.seed is None:
            return image, self.masks()
        with seeded(self.seed, IMAGE, index):
            return image, self.masks()


def held_out(folder: Path, config: ModelConfig, masks: MaskGenerator, seed: int) -> MaskedImages:
    """The images of `folder` as evaluation sees them, each with its own fixed mask."""
    return MaskedImages(Unlabelled(folder), eval_transform(config), masks, seed)


def write_photos(folder: Path, tile: int = 128, step: int = 32) -> Path:
    """Tiles of the photographs that scikit-learn ships (and scikit-image, if it is installed), as PNG, written once.

    FOLDER/train has overlapping tiles of the left four fifths of each photograph, FOLDER/val tiles of the rest: no
    pixel is in both. Raises `DataError` if FOLDER holds something else.
    """
    if folder.exists():
        if not (folder / "train").is_dir() or not (folder / "val").is_dir():
            raise DataError(f"{folder} holds no train/ and val/: remove it, and the photographs are written again")
        return folder
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for name, photo in photographs().items():
            split = photo.shape[1] * 4 // 5
            for part, left, right in (("train", 0, split), ("val", split, photo.shape[1])):
                _write_tiles(staging / part, name, photo, left, right, tile, step)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
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
    """name -> uint8 [H,W,3] of the real photographs at hand in installed packages; nothing is downloaded."""
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
