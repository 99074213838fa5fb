"""Encoded image bytes -> pixels [S,S,3] uint8, RGB: the evaluation transform of timm and torchvision.

Bit for bit, but for large JPEGs (below). PIL's ``convert("RGB")``, the shorter side resized to `resize_size` with the
aspect kept (timm's `crop_mode` center; squash: both sides; border: the longer one), the centre `image_size` square cut
out, `fill` where there is no picture. ``convert("RGB")`` drops alpha and converts CMYK naively: ImageFolder and timm's
dataset gave the network just that in training, so the served network gets it too.

A large JPEG is decoded at a half, quarter or eighth of its size (libjpeg's scaled decoding) as long as its shorter side
stays MARGIN times `resize_size`: it is then resized from there. On detailed photographs that moves a pixel by 0.8 grey
levels on average at most, and by 10 at most; smaller images stay as they are. ``reduced_decoding: "false"``: all do.
"""

import io
import math
import re
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from PIL import Image
from pillow_resize import resize_part

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAGIC = re.compile(rb"\xff\xd8|\x89PNG|RIFF....WEBP|BM|GIF8", re.DOTALL)
READABLE = "JPEG, PNG, WebP, BMP or GIF"
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
CROP_MODES = ("center", "squash", "border")
MARGIN = 2.25  # below it the bicubic filter sees libjpeg's coarser one: 1.0 grey level on average at 2, 1.5 at 1.5
COUNTED = re.compile(r"(\d+) pixels")  # in Pillow's own refusal
EXIF_ORIENTATION = 0x0112
Prepared: TypeAlias = tuple[np.ndarray, np.ndarray]
UPRIGHT = {  # stored orientation -> what turns it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(ValueError):
    """The sender's mistake; the message says what, with the value, and what to send instead."""


@dataclass(frozen=True)
class Settings:
    """From the parameters of config.pbtxt; sizes in pixels."""

    image_size: int
    resize_size: int
    interpolation: str
    max_file_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 89_478_485
    reduced_decoding: bool = True
    crop_mode: str = "center"
    fill: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        for name in ("image_size", "resize_size", "max_file_bytes", "max_pixels"):
            if getattr(self, name) < 1:
                raise ValueError(f"parameter {name} is {getattr(self, name)}: it must be 1 or more")
        if self.interpolation not in FILTERS:
            raise ValueError(f'parameter interpolation is "{self.interpolation}": choose {" or ".join(FILTERS)}')
        if self.crop_mode not in CROP_MODES:
            raise ValueError(f'parameter crop_mode is "{self.crop_mode}": choose {" or ".join(CROP_MODES)}')
        if max(self.fill) > 255:
            raise ValueError(f"parameter fill is {self.fill}: three levels from 0 to 255 are needed")


def preprocess(data: bytes, settings: Settings) -> np.ndarray:
    """The pixels of `prepare` alone."""
    return prepare(data, settings)[0]


def prepare(data: bytes, settings: Settings) -> Prepared:
    """Encoded bytes -> pixels [S,S,3] uint8, and their `crop_shares` [4].

    Raises `ImageError`, whatever is wrong with the bytes, and `MemoryError`, which is not the sender's mistake.
    """
    if not data:
        raise ImageError(f"the image is empty (0 bytes): send the bytes of a {READABLE} file")
    if len(data) > settings.max_file_bytes:
        raise ImageError(f"the image is {len(data)} bytes, the limit is {settings.max_file_bytes}: send a smaller file")
    try:
        with open_image(data, settings) as image:
            size = resized_size(image.size, settings)
            box = decode(image, settings)
            rgb = to_rgb(image)
            turn = UPRIGHT.get(read_orientation(image))
            if turn is not None:
                if box is not None:
                    whole = resize_part(rgb, size, FILTERS[settings.interpolation], (0, 0, *size), box)
                    rgb, box = Image.fromarray(whole), None
                rgb = rgb.transpose(turn)
                size = resized_size(rgb.size, settings)
            return resize_and_crop(rgb, size, box, settings), crop_shares(size, settings.image_size)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        count = COUNTED.search(str(error))
        raise ImageError(
            f"the image has {count.group(1) if count else 'too many'} pixels, "
            f"the limit is {settings.max_pixels} in all: send a smaller image"
        ) from error
    except Exception as error:  # decoders raise nearly everything on bytes made to hurt them
        raise ImageError(
            f"the image cannot be decoded ({len(data)} bytes, {type(error).__name__}: {str(error)[:200]}): "
            "the file is truncated or damaged, save it again"
        ) from error


def open_image(data: bytes, settings: Settings) -> Image.Image:
    """Reads the header only; no pixel is decoded before its size is known to be within bounds."""
    Image.MAX_IMAGE_PIXELS = settings.max_pixels / 2  # Pillow warns beyond it and refuses beyond twice as much
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        if MAGIC.match(data):
            raise ImageError(
                f"the image's header is truncated or damaged ({len(data)} bytes, it begins with {data[:8]!r}): "
                "save it again"
            ) from error
        raise ImageError(f"not a {READABLE} image (it begins with {data[:8]!r}): send one of these formats") from error
    check_pixels(image.size, settings.max_pixels, "the image is")
    return image


def decode(image: Image.Image, settings: Settings) -> tuple[int, int, float, float] | None:
    """Decodes the first frame. Of a JPEG decoded at reduced size: the box that the picture covers, which may end
    between two pixels; else None."""
    reduced = None
    if settings.reduced_decoding and image.format in ("JPEG", "MPO"):  # MPO: with a second picture, as phones have it
        width = image.size[0]
        short = math.ceil(MARGIN * settings.resize_size)
        drafted = image.draft(None, (short, short))
        if drafted is not None and image.size[0] != width:
            reduced = drafted[1]
    image.load()
    return reduced


def check_pixels(size: tuple[int, int], limit: int, what: str) -> None:
    width, height = size
    if width < 1 or height < 1 or width * height > limit:
        raise ImageError(f"{what} {width} x {height} pixels, the limit is {limit} in all: send a smaller image")


def read_orientation(image: Image.Image) -> int:
    """EXIF's orientation, 1 to 8; damaged EXIF data is no reason to refuse the picture."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """16-bit grey keeps its high byte, as PIL does with 16-bit colour; PIL's own conversion of it clips."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def resize_and_crop(
    image: Image.Image, size: tuple[int, int], box: tuple[int, int, float, float] | None, settings: Settings
) -> np.ndarray:
    """The resized image's centre [S,S,3], to torchvision's rounding; what the image does not reach is `fill`."""
    crop = settings.image_size
    left, top = crop_start(size[0], crop), crop_start(size[1], crop)
    window = (max(left, 0), max(top, 0), min(left + crop, size[0]), min(top + crop, size[1]))
    part = resize_part(image, size, FILTERS[settings.interpolation], window, box)
    height, width = part.shape[:2]
    if (height, width) == (crop, crop):
        return part
    canvas = np.full((crop, crop, 3), settings.fill, np.uint8)
    canvas[max(-top, 0) : max(-top, 0) + height, max(-left, 0) : max(-left, 0) + width] = part
    return canvas


def resized_size(size: tuple[int, int], settings: Settings) -> tuple[int, int]:
    """What `crop_mode` makes of a size. Raises `ImageError` where the longer side becomes enormous."""
    (width, height), side = size, settings.resize_size
    if settings.crop_mode == "squash":
        return side, side
    if settings.crop_mode == "border":
        ratio = max(width / side, height / side)
        return max(1, round(width / ratio)), max(1, round(height / ratio))
    short = min(width, height)
    resized = (int(side * width / short), int(side * height / short))
    if resized != size:
        check_pixels(resized, settings.max_pixels, f"a {width} x {height} image, resized for the network, is")
    return resized


def crop_shares(size: tuple[int, int], crop: int) -> np.ndarray:
    """Left, upper, right, lower [4] float32 of the centre crop, as shares of the resized image's width and height;
    below 0 and above 1 where it is padded."""
    starts = [crop_start(length, crop) / length for length in size]
    ends = [start + crop / length for start, length in zip(starts, size, strict=True)]
    return np.array(starts + ends, np.float32)


def crop_start(length: int, crop: int) -> int:
    """Where the centre crop begins along one side; negative: the side is padded."""
    return -((crop - length) // 2) if length < crop else round((length - crop) / 2)
