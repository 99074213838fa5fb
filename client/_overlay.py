"""A class map as a picture."""

import io
from typing import TYPE_CHECKING

import numpy as np

from client._errors import InvalidImageError
from client._images import ImageLike, encode, pillow

if TYPE_CHECKING:
    from PIL.Image import Image

CROP_MODES = ("center", "squash", "border")
COLD, WARM, HOT = (0, 0, 128), (255, 80, 0), (255, 255, 160)


def overlay(
    image: ImageLike, class_map: np.ndarray, crop_pct: float = 1.0, strength: float = 0.5, crop_mode: str = "center"
) -> "Image":
    """The upright picture with the map over the part that the model sees.

    Args:
        class_map: [h,w], of `explain`. Evidence against the class counts as none.
        crop_pct: the share of the shorter side that the server's preprocessing keeps (``--crop-pct`` of the build).
        strength: of the map's colours, 0 to 1.
        crop_mode: of the server's preprocessing; `crop_pct` is of both sides in squash, of the longer one in border.

    Raises:
        InvalidImageError: no picture, or Pillow is not installed.
        ValueError: `crop_pct` or `strength` is not a share, or `crop_mode` is unknown.
    """
    for name, share in (("crop_pct", crop_pct), ("strength", strength)):
        if not 0 < share <= 1:
            raise ValueError(f"{name} is {share}: give a share, more than 0 and at most 1")
    if crop_mode not in CROP_MODES:
        raise ValueError(f"crop_mode is {crop_mode!r}: choose one of {', '.join(CROP_MODES)}")
    module = pillow()
    from PIL import ImageOps

    try:
        picture = ImageOps.exif_transpose(module.open(io.BytesIO(encode(image)))).convert("RGB")
    except (OSError, SyntaxError, ValueError, module.DecompressionBombError) as error:
        raise InvalidImageError(f"the picture cannot be decoded here ({error})") from error
    shorter, longer = sorted(picture.size)
    kept = {"center": (shorter, shorter), "squash": picture.size, "border": (longer, longer)}[crop_mode]
    width, height = (max(1, round(length * crop_pct)) for length in kept)
    left, upper = (picture.width - width) // 2, (picture.height - height) // 2
    evidence = np.maximum(class_map, 0).astype(np.float32)
    heat = module.fromarray(evidence / (evidence.max() or 1.0)).resize((width, height), module.Resampling.BICUBIC)
    values = np.asarray(heat).clip(0, 1)  # [height,width]; bicubic overshoots
    channels = [np.interp(values, (0, 0.5, 1), levels) for levels in zip(COLD, WARM, HOT, strict=True)]
    colours = module.fromarray(np.stack(channels, -1).astype(np.uint8))
    box = (left, upper, left + width, upper + height)  # in border it reaches beyond the picture
    picture.paste(module.blend(picture.crop(box), colours, strength), box)
    return picture
