"""Encoded image bytes -> pixels [S,S,3] uint8, RGB: the first step of the `classifier` ensemble.

The evaluation transform of timm and torchvision, bit for bit: PIL's ``convert("RGB")``, the shorter side resized to
`resize_size` with the aspect kept (timm's `crop_mode` center; squash: both sides; border: the longer one), the centre
`image_size` square cut out, `fill` where there is no picture. ``convert("RGB")`` drops alpha and converts CMYK
naively: ImageFolder and timm's dataset gave the network just that in training, so the served network gets it too.

A large JPEG is decoded at a half, quarter or eighth of its size (libjpeg's scaled decoding) as long as its shorter side
stays MARGIN times `resize_size`: it is then resized from there. On detailed photographs that moves a pixel by 0.8 grey
levels on average at most, and by 10 at most; smaller images stay as they are. ``reduced_decoding: "false"``: all do.
"""

import io
import itertools
import json
import math
import os
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image
from pillow_resize import resize_part

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAGIC = re.compile(rb"\xff\xd8|\x89PNG|RIFF....WEBP|BM|GIF8", re.DOTALL)
READABLE = "JPEG, PNG, WebP, BMP or GIF"
FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
CROP_MODES = ("center", "squash", "border")
COLOUR = re.compile(r"(\d+),(\d+),(\d+)")
MARGIN = 2.25  # below it the bicubic filter sees libjpeg's coarser one: 1.0 grey level on average at 2, 1.5 at 1.5
COUNTED = re.compile(r"(\d+) pixels")  # in Pillow's own refusal
NICENESS = 10
EXIF_ORIENTATION = 0x0112
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


def read_settings(config: dict[str, Any]) -> Settings:
    """Raises `ValueError` for a parameter that is missing or cannot be."""
    values = {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}
    known: dict[str, Any] = {}
    for name in Settings.__dataclass_fields__:
        if name not in values:
            continue
        value = values[name].strip()
        if name in ("interpolation", "crop_mode"):
            known[name] = value
        elif name == "fill":
            if (levels := COLOUR.fullmatch(value)) is None:
                raise ValueError(f'parameter {name} is "{value}": write three levels, such as 124,116,104')
            known[name] = tuple(map(int, levels.groups()))
        elif name == "reduced_decoding":
            if value not in ("true", "false"):
                raise ValueError(f'parameter {name} is "{value}": write true or false')
            known[name] = value == "true"
        elif value.isdigit():
            known[name] = int(value)
        else:
            raise ValueError(f'parameter {name} is "{value}": it must be a whole number')
    missing = {"image_size", "resize_size", "interpolation"} - known.keys()
    if missing:
        raise ValueError(f"parameters missing from config.pbtxt: {', '.join(sorted(missing))}")
    return Settings(**known)


def preprocess(data: bytes, settings: Settings) -> np.ndarray:
    """Encoded bytes -> pixels [S,S,3] uint8. Raises `ImageError`, whatever is wrong with the bytes."""
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
            if turn is None:
                return resize_and_crop(rgb, size, box, settings)
            if box is not None:
                rgb = rgb.resize(size, FILTERS[settings.interpolation], box)
            upright = rgb.transpose(turn)
            return resize_and_crop(upright, resized_size(upright.size, settings), None, settings)
    except ImageError:
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
    if settings.reduced_decoding and image.format == "JPEG":
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


def crop_start(length: int, crop: int) -> int:
    """Where the centre crop begins along one side; negative: the side is padded."""
    return -((crop - length) // 2) if length < crop else round((length - crop) / 2)


def threads_of(config: dict[str, Any]) -> int:
    """Images that one instance decodes at once: the instances (processes) share the cores."""
    instances = sum(group.get("count", 1) for group in config.get("instance_group", [])) or 1
    return max(1, len(os.sched_getaffinity(0)) // instances)


class TritonPythonModel:
    """The Python backend's interface. A bad image fails its own request and no other."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.settings = read_settings(config)
        # Under more load than it can take the server first answers what is decoded.
        os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
        threads = threads_of(config)
        # Pillow decodes outside the interpreter's lock.
        self.pool = ThreadPoolExecutor(threads) if threads > 1 else None
        warnings.simplefilter("ignore")  # what Pillow says of odd files is for nobody here
        Image.init()  # the format plugins load now and not in the first request

    def execute(self, requests: list[Any]) -> list[Any]:
        batches = [self._images(request) for request in requests]
        images = [data for batch in batches if not isinstance(batch, Exception) for data in batch]
        run = self.pool.map if self.pool is not None and len(images) > 1 else map
        outcomes = iter(run(self._outcome, images))
        return [self._answer(batch, outcomes) for batch in batches]

    def finalize(self) -> None:
        if self.pool is not None:
            self.pool.shutdown()

    def _images(self, request: Any) -> np.ndarray | Exception:
        """Encoded images [B], or why there are none."""
        try:
            return pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1)
        except Exception as error:
            return error

    def _outcome(self, data: bytes) -> np.ndarray | ImageError:
        try:
            return preprocess(data, self.settings)
        except ImageError as error:
            return error

    def _answer(self, batch: np.ndarray | Exception, outcomes: Iterator[Any]) -> Any:
        try:
            if isinstance(batch, Exception):
                raise batch
            pixels = stack(list(itertools.islice(outcomes, len(batch))))
            return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("pixels", pixels)])
        except ImageError as error:
            failure = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
        except Exception as error:
            failure = pb_utils.TritonError(f"preprocess failed: {type(error).__name__}: {error}")
        return pb_utils.InferenceResponse(error=failure)


def stack(outcomes: list[np.ndarray | ImageError]) -> np.ndarray:
    """Pixels [S,S,3] each -> [B,S,S,3]. Raises the first `ImageError`, with its place."""
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, ImageError):
            raise ImageError(f"image {index} of {len(outcomes)}: {outcome}") if len(outcomes) > 1 else outcome
    return outcomes[0][None] if len(outcomes) == 1 else np.stack(outcomes)
