"""A picture of a masked model's reconstructions."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kernels.masked_patch_loss.vectorized import repeat_patches
from models import MaskedPretrainer, ModelConfig
from models.files import replace_file
from models.modes import evaluating
from training.augment import to_picture

GREY = 0.5
GAP = 2  # white pixels between two pictures


def write_reconstructions(
    path: Path, model: MaskedPretrainer, images: Tensor, masks: Tensor, config: ModelConfig
) -> None:
    """Write a PNG with a row for each image [B,3,S,S]: whole, as the model sees it, with masked patches filled in."""
    with evaluating(model):
        filled = model.reconstruct(images, masks)
    patch = images.shape[2] // masks.shape[1]
    hidden = repeat_patches(masks, patch)[:, None]  # [B,1,S,S]
    mean, std = (torch.tensor(values, device=images.device).view(1, 3, 1, 1) for values in (config.mean, config.std))
    seen = torch.where(hidden, (GREY - mean) / std, images)
    filled = torch.where(hidden, filled, images)
    side = images.shape[2] + GAP
    sheet = np.full((len(images) * side - GAP, 3 * side - GAP, 3), 255, dtype=np.uint8)
    for row, parts in enumerate(zip(images, seen, filled, strict=True)):
        for column, part in enumerate(parts):
            picture = to_picture(part.float(), config)
            sheet[row * side : row * side + side - GAP, column * side : column * side + side - GAP] = picture
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda place: Image.fromarray(sheet).save(place, format="PNG"))
