"""SimMIM's masks (Xie et al., CVPR 2022), and a data set of unlabelled images with masks."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode, v2

from models import ModelConfig
from training.augment import short_side_of_crops, to_normalised
from training.data import Unlabelled
from training.images import Transform
from training.randomness import IMAGE, seeded
from training.settings import SettingsError


class MaskGenerator:
    """A generator of masks [h',w'] bool, h' = w' = image_size // patch_size: ceil(ratio * h' * w') are True, masked.

    Masks are drawn as upstream: the first patches of NumPy's random permutation. Raises `SettingsError` for a patch
    that does not divide the image, a ratio outside 0..1, or one that leaves no patch visible.
    """

    def __init__(self, image_size: int = 192, patch_size: int = 32, ratio: float = 0.6) -> None:
        if patch_size < 1 or image_size % patch_size:
            raise SettingsError(f"--mask-patch {patch_size}: it must divide the image of {image_size} pixels")
        if not 0.0 < ratio < 1.0:
            raise SettingsError(f"--mask-ratio {ratio}: it must be above 0 and below 1")
        self.side = image_size // patch_size
        self.count = math.ceil(self.side**2 * ratio)
        if self.count == self.side**2:
            raise SettingsError(
                f"--mask-patch {patch_size}, --mask-ratio {ratio}: all {self.count} patches of the image of "
                f"{image_size} pixels would be masked and none seen; take smaller patches or a smaller ratio"
            )

    def __call__(self) -> Tensor:
        mask = torch.zeros(self.side**2, dtype=torch.bool)
        mask[torch.from_numpy(np.random.permutation(self.side**2)[: self.count])] = True
        return mask.view(self.side, self.side)


def pretrain_transform(config: ModelConfig, min_crop_area: float, flip: bool) -> Transform:
    """PIL RGB -> normalised [3,S,S]: upstream's random bilinear crop and, if `flip`, random mirroring."""
    size, mode = config.image_size, InterpolationMode.BILINEAR
    steps: list[Any] = [
        v2.RandomResizedCrop(size, scale=(min_crop_area, 1.0), ratio=(3 / 4, 4 / 3), interpolation=mode)
    ]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    return Transform([*steps, *to_normalised(config)], short_side_of_crops(size, min_crop_area))


class MaskedImages(Dataset[tuple[Tensor, Tensor]]):
    """A data set of (image [3,S,S], mask [h',w']). With a `seed` an image always has the same mask, for evaluation."""

    def __init__(self, images: Unlabelled, transform: Transform, masks: MaskGenerator, seed: int | None = None) -> None:
        self.images, self.transform, self.masks, self.seed = images, transform, masks, seed
        self.sizes = images.shards.sizes if images.shards else None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.transform(self.images.image(index, self.transform.short_side))
        if self.seed is None:
            return image, self.masks()
        with seeded(self.seed, IMAGE, index):
            return image, self.masks()
