"""The transforms of images before the model, in training and in evaluation."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import CenterCropOrPad, ResizeKeepRatio, str_to_pil_interp
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from models import ModelConfig
from training.images import Transform
from training.settings import SettingsError

Augmentation = Literal["affine", "crop", "none"]
MARGIN = 2.25  # least size of a reduced JPEG over the output's, as in the served `preprocess`, which says why


@dataclass(frozen=True)
class AugmentConfig:
    """How training images are varied."""

    augmentation: Augmentation = "crop"
    """crop: random crops and mirror images, for photographs.
    affine: small rotations, shifts and zooms, never mirrored, for drawings; none: as in evaluation."""
    min_crop_area: float = 0.25
    """Smallest random crop of --augmentation crop, as a share of the image's area; published recipes use 0.08"""
    flip: bool = True
    """Mirror half of the images in --augmentation crop; turn it off for text, digits and road signs"""
    affine_fill: Literal["mean", "black"] = "mean"
    """Colour of the corners that --augmentation affine leaves empty; black suits drawings on black"""
    rand_augment: str = ""
    """RandAugment; empty: off.
    n2-m9: 2 of the paper's 14 operations at magnitude 9 of 30;
    rand-m9-mstd0.5-inc1: a recipe in timm's notation."""
    random_erasing: float = 0.0
    """Probability that a random rectangle of an image is replaced by noise, 0 to 1"""
    mixup: float = 0.0
    """Alpha of mixup's beta distribution; 0: off"""
    cutmix: float = 0.0
    """Alpha of CutMix's beta distribution; 0: off. With --mixup too, one of the two is drawn for each batch."""


def eval_transform(config: ModelConfig) -> Transform:
    """Return PIL RGB -> normalised float32 [3,S,S], from the same pixels as in the served `preprocess`.

    Large JPEGs are decoded at a fraction of their size, as there, except those that the fraction does not divide, which
    differ slightly.

    timm's evaluation: the shorter side becomes floor(image_size / crop_pct) with the aspect kept (`crop_mode` center),
    or both sides do (squash), or the longer one (border: the rest is filled with the mean); then the centre is cut out.
    """
    side = math.floor(config.image_size / config.crop_pct)
    return Transform([*to_square(config, side), *to_normalised(config)], math.ceil(MARGIN * side))


def train_transform(config: ModelConfig, augment: AugmentConfig) -> Transform:
    """PIL RGB -> normalised float32 [3,S,S], varied by crop or affine, RandAugment, erasing. Raises `SettingsError`."""
    size, mode = config.image_size, InterpolationMode(config.interpolation)
    side = math.floor(size / config.crop_pct)
    short_side = math.ceil(MARGIN * side)
    steps: list[Any] = []
    if augment.augmentation == "crop":
        area = (augment.min_crop_area, 1.0)
        steps.append(v2.RandomResizedCrop(size, scale=area, interpolation=mode))
        steps += [v2.RandomHorizontalFlip()] * augment.flip
        short_side = short_side_of_crops(size, augment.min_crop_area)
    else:
        steps += to_square(config, side)
    if augment.augmentation == "affine":
        fill = mean_colour(config) if augment.affine_fill == "mean" else (0, 0, 0)
        bilinear = InterpolationMode.BILINEAR
        steps.append(v2.RandomAffine(10, (0.08, 0.08), (0.9, 1.1), (-8, 8), bilinear, fill=list(fill)))
    if augment.rand_augment:
        steps.append(rand_augment(augment.rand_augment, config))
    steps += to_normalised(config)
    if augment.random_erasing:
        steps.append(RandomErasing(augment.random_erasing, mode="pixel", device="cpu"))
    return Transform(steps, short_side)


def short_side_of_crops(size: int, min_crop_area: float) -> int:
    """Return the least shorter side of a decoded image at which the smallest crop, of sides 3 to 4, is not enlarged."""
    return math.ceil(size / math.sqrt(min_crop_area * 3 / 4))


def rand_augment(policy: str, config: ModelConfig) -> Callable[[Image.Image], Image.Image]:
    """RandAugment (Cubuk et al., 2020), PIL -> PIL of the same size.

    "nN-mM" (or "mM", N = 2): N draws with replacement from the paper's 14 operations at magnitude M of 0..30, identity
    among them (torchvision's RandAugment). The maximum of the paper's scale is disputed: the authors' code
    (tensorflow/tpu) divides by 10, so their M = 9 rotates an image by 27 degrees and this one by 9; n2-m27 is nearest
    to theirs. "rand-...": timm's variant, also divided by 10, with its own 15 operations, each applied half the time,
    as in RepLKNet's recipe. Raises `SettingsError` for anything else.
    """
    grey = mean_colour(config)
    if found := re.fullmatch(r"(?:n(\d+)-)?m(\d+)", policy):
        draws, magnitude = int(found[1] or 2), int(found[2])
        if draws < 1 or magnitude > 30:
            raise SettingsError(f"--rand-augment {policy}: N is at least 1, M is 0 to 30")
        return v2.RandAugment(num_ops=draws, magnitude=magnitude, fill=list(grey))
    if re.fullmatch(r"rand(-(m|n|p|mstd|mmax|inc|w)[\d.]+)+", policy) and "-inc0" not in policy:
        filter_ = str_to_pil_interp(config.interpolation)  # else timm draws bilinear or bicubic for each operation
        extra = {"translate_const": int(config.image_size * 0.45), "img_mean": grey, "interpolation": filter_}
        try:
            chain = rand_augment_transform(policy, extra)
        except (AssertionError, ValueError, KeyError) as error:
            raise SettingsError(f"--rand-augment {policy}: timm refuses it ({error})") from error
        most = chain.ops[0].magnitude_max or 10
        if chain.num_layers < 1 or chain.ops[0].magnitude > most:  # timm would apply nothing, or less than asked
            raise SettingsError(f"--rand-augment {policy}: n is at least 1, m is 0 to {most:g} (mmax raises it)")
        for operation in chain.ops:
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
        return chain
    raise SettingsError(
        f"--rand-augment {policy}: write n2-m9 for the paper's own, rand-m9-mstd0.5-inc1 for timm's (no -inc0: timm "
        "takes it for inc1)"
    )


def mean_colour(config: ModelConfig) -> tuple[int, ...]:
    """Return the RGB colour, 0..255, that normalisation maps to 0."""
    return tuple(round(255 * value) for value in config.mean)


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep `bits` bits of each channel; timm may ask for 0, which is black and which Pillow 13 refuses."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


class MixBatch:
    """Mixup and CutMix on a batch: images [B,3,S,S], targets [B] -> images, soft targets [B,classes].

    Uses timm's Mixup, which draws from NumPy's generator. Raises `SettingsError` for an odd batch size, which it cannot
    pair.
    """

    def __init__(self, augment: AugmentConfig, label_smoothing: float, num_classes: int, batch_size: int) -> None:
        if batch_size % 2:
            raise SettingsError(f"--batch-size {batch_size} with --mixup or --cutmix: an even one is needed")
        self.mix = Mixup(
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            label_smoothing=label_smoothing,
            num_classes=num_classes,
        )

    @torch.compiler.disable  # else each share that is drawn would be a constant, and compile a new graph
    def __call__(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return self.mix(images.clone(), targets)


class TwoViews(Transform):
    """PIL -> [2,3,S,S]: two varied views of one image, for contrastive methods."""

    def __init__(self, transform: Transform) -> None:
        super().__init__(transform.transforms, transform.short_side)

    def forward(self, image: Image.Image) -> Tensor:
        return torch.stack([super().forward(image), super().forward(image)])


def to_square(config: ModelConfig, side: int) -> list[Any]:
    """The steps PIL RGB -> PIL RGB of image_size x image_size: resize to `side`, then crop, as `crop_mode` says."""
    size = config.image_size
    if config.crop_mode == "border":
        keep_ratio = ResizeKeepRatio(side, longest=1.0, interpolation=config.interpolation)
        return [keep_ratio, CenterCropOrPad(size, fill=config.fill)]
    sides = [side, side] if config.crop_mode == "squash" else side
    return [v2.Resize(sides, InterpolationMode(config.interpolation)), v2.CenterCrop(size)]


def to_normalised(config: ModelConfig) -> list[Any]:
    """The last steps of every transform: PIL RGB -> normalised float32 [3,H,W]."""
    to_float, normalize = v2.ToDtype(torch.float32, scale=True), v2.Normalize(config.mean, config.std, inplace=True)
    return [v2.PILToTensor(), torch.Tensor.contiguous, to_float, normalize]  # contiguous: twice as fast


def to_picture(image: Tensor, config: ModelConfig) -> np.ndarray:
    """Normalised [3,S,S] -> uint8 [S,S,3], to look at."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    return ((image.cpu() * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
