"""A class map as a picture."""

import contextlib
import io
from typing import TYPE_CHECKING

import numpy as np

from client._errors import InvalidImageError
from client._images import ImageLike, encode, pillow
from client._request import Explanation

if TYPE_CHECKING:
    from PIL.Image import Image

COLD, WARM, HOT = (0, 0, 128), (255, 80, 0), (255, 255, 160)
CHANNELS = [np.interp(range(256), (0, 127.5, 255), levels) for levels in zip(COLD, WARM, HOT, strict=True)]
PALETTE = np.stack(CHANNELS, -1).astype(np.uint8).tobytes()


def _upright(image: ImageLike) -> "Image":
    """Decode to upright RGB as the server does: 16-bit grey keeps its high byte. Raises `InvalidImageError`."""
    module = pillow()
    from PIL import ImageOps

    try:
        picture = module.open(io.BytesIO(encode(image)))
        picture.load()
        with contextlib.suppress(Exception):  # damaged EXIF data: Pillow turns the picture, and fails at its other tags
            ImageOps.exif_transpose(picture, in_place=True)
        if picture.mode.startswith("I"):  # Pillow's own conversion makes all above 255 white
            picture = module.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, module.DecompressionBombError) as error:
        raise InvalidImageError(f"the picture cannot be decoded here ({error})") from error


def overlay(image: ImageLike, explanation: Explanation, strength: float = 0.5, least: int = 0) -> "Image":
    """The upright picture with the class map over the part that the model sees.

    Args:
        image: the one that was explained, at this or another size.
        explanation: its class map and crop. Evidence against the class counts as none.
        strength: opacity of the map's colours, more than 0 and at most 1.
        least: minimum of the longer side in pixels; a smaller picture is enlarged.

    Raises:
        InvalidImageError: the picture cannot be decoded, or Pillow is not installed.
        ValueError: `strength` is out of range.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength is {strength}: give a share, more than 0 and at most 1")
    module, picture = pillow(), _upright(image)
    if max(picture.size) < least:
        from PIL import ImageOps

        picture = ImageOps.contain(picture, (least, least))
    evidence = np.maximum(explanation.class_map, 0).astype(np.float32)
    heat = module.fromarray(255 * evidence / (evidence.max() or 1.0))
    sides, cells = np.array(picture.size), np.array(heat.size)
    first, last = np.reshape(explanation.crop, (2, 2))  # (left, upper), (right, lower)
    # Whole pixels (1e-3 absorbs float32's rounding); the crop of a padded picture reaches beyond it.
    start = np.floor(first * sides + 1e-3).clip(0, sides - 1).astype(int)
    end = np.ceil(last * sides - 1e-3).clip(start + 1, sides).astype(int)
    seen = (((edge / sides - first) / (last - first) * cells).clip(0, cells) for edge in (start, end))
    colours = heat.resize(tuple(end - start), module.Resampling.BICUBIC, tuple(np.concatenate([*seen]))).convert("L")
    colours.putpalette(PALETTE)
    box = (*start.tolist(), *end.tolist())
    picture.paste(module.blend(picture.crop(box), colours.convert("RGB"), strength), box)
    return picture
