"""A class map as a picture."""

import io
from typing import TYPE_CHECKING

import numpy as np

from client._errors import InvalidImageError
from client._images import ImageLike, encode, pillow

if TYPE_CHECKING:
    from PIL.Image import Image

COLD, WARM, HOT = (0, 0, 128), (255, 80, 0), (255, 255, 160)


def overlay(image: ImageLike, class_map: np.ndarray, crop_pct: float = 1.0, strength: float = 0.5) -> "Image":
    """The upright picture with the map over the centre crop that the model sees.

    Args:
        class_map: [h,w], of `explain`. Evidence against the class counts as none.
        crop_pct: the share of the shorter side that the server's preprocessing keeps (``--crop-pct`` of the build).
        strength: of the map's colours, 0 to 1.

    Raises:
        InvalidImageError: no picture, or Pillow is not installed.
        ValueError: `crop_pct` or `strength` is no share.
    """
    for name, share in (("crop_pct", crop_pct), ("strength", strength)):
        if not 0 < share <= 1:
            raise ValueError(f"{name} is {share}: give a share, more than 0 and at most 1")
    module = pillow()
    from PIL import ImageOps

    try:
        picture = ImageOps.exif_transpose(module.open(io.BytesIO(encode(image)))).convert("RGB")
    except (OSError, SyntaxError, ValueError, module.DecompressionBombError) as error:
        raise InvalidImageError(f"the picture cannot be decoded here ({error})") from error
    side = max(1, round(min(picture.size) * crop_pct))
    left, upper = ((length - side) // 2 for length in picture.size)
    evidence = np.maximum(class_map, 0).astype(np.float32)
    heat = module.fromarray(evidence / (evidence.max() or 1.0)).resize((side, side), module.Resampling.BICUBIC)
    values = np.asarray(heat).clip(0, 1)  # [side,side]; bicubic overshoots
    channels = [np.interp(values, (0, 0.5, 1), levels) for levels in zip(COLD, WARM, HOT, strict=True)]
    colours = module.fromarray(np.stack(channels, -1).astype(np.uint8))
    box = (left, upper, left + side, upper + side)
    picture.paste(module.blend(picture.crop(box), colours, strength), box)
    return picture
