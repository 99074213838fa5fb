"""A class map as a picture."""

import io
from typing import TYPE_CHECKING

import numpy as np

from client._errors import InvalidImageError
from client._images import ImageLike, encode, pillow
from client._request import Explanation

if TYPE_CHECKING:
    from PIL.Image import Image

COLD, WARM, HOT = (0, 0, 128), (255, 80, 0), (255, 255, 160)


def overlay(image: ImageLike, explanation: Explanation, strength: float = 0.5) -> "Image":
    """The upright picture with the class map over the part that the model sees.

    Args:
        image: the one that was explained, at this or another size.
        explanation: its class map and crop. Evidence against the class counts as none.
        strength: of the map's colours, more than 0 and at most 1.

    Raises:
        InvalidImageError: no picture, or Pillow is not installed.
        ValueError: `strength` is not a share.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength}: give a share, more than 0 and at most 1")
    module = pillow()
    from PIL import ImageOps

    try:
        picture = ImageOps.exif_transpose(module.open(io.BytesIO(encode(image)))).convert("RGB")
    except (OSError, SyntaxError, ValueError, module.DecompressionBombError) as error:
        raise InvalidImageError(f"the picture cannot be decoded here ({error})") from error
    sides = zip(explanation.crop, picture.size * 2, strict=True)
    left, upper, right, lower = (round(share * side) for share, side in sides)
    size = (max(1, right - left), max(1, lower - upper))
    box = (left, upper, left + size[0], upper + size[1])  # of a padded picture it reaches beyond it
    evidence = np.maximum(explanation.class_map, 0).astype(np.float32)
    heat = module.fromarray(evidence / (evidence.max() or 1.0)).resize(size, module.Resampling.BICUBIC)
    values = np.asarray(heat).clip(0, 1)  # [height,width]; bicubic overshoots
    channels = [np.interp(values, (0, 0.5, 1), levels) for levels in zip(COLD, WARM, HOT, strict=True)]
    colours = module.fromarray(np.stack(channels, -1).astype(np.uint8))
    picture.paste(module.blend(picture.crop(box), colours, strength), box)
    return picture
