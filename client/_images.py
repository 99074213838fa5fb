"""Convert every form of an image to encoded bytes, checked as far as is possible without decoding."""

import contextlib
import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from client._errors import InvalidImageError

if TYPE_CHECKING:
    from PIL.Image import Image

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | np.ndarray | Image"

MAX_BYTES = 2**31 - 2**20  # a protobuf message ends at 2 GiB
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B")
ORIENTATION = 0x0112  # EXIF's tag


def describe(image: Any) -> str:
    """A name for messages."""
    if isinstance(image, (str, os.PathLike)):
        return os.fsdecode(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return f"<{len(image)} bytes>"
    if isinstance(image, np.ndarray):
        return f"<array {image.dtype} {list(image.shape)}>"
    if _is_pil(image):
        return f"<PIL image {image.mode} {image.width} x {image.height}>"
    return f"<{type(image).__name__}>"


def encode(image: Any) -> bytes:
    """Return files and bytes unchanged, a PIL image or an array as (lossless) PNG. Raises `InvalidImageError`."""
    if isinstance(image, (str, os.PathLike)):
        data = _read(os.fsdecode(image))
    elif isinstance(image, (bytes, bytearray, memoryview)):
        data = bytes(image)
    elif isinstance(image, np.ndarray):
        data = _encode_array(image)
    elif _is_pil(image):
        data = _encode_pil(image)
    else:
        name = type(image).__name__
        raise InvalidImageError(f"{name} is not an image: give a path, bytes, a PIL image or a uint8 array")
    if not data:
        raise InvalidImageError("the image is empty (0 bytes): save it again, or send another")
    _check_size(len(data))
    return data


def is_one(images: Any) -> bool:
    """Whether `images` is a single image: some forms of one, such as bytes, are iterable too."""
    if isinstance(images, np.ndarray):
        return images.ndim in (2, 3)  # [H,W] or [H,W,3]; [N,H,W,3] is many
    return isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview)) or _is_pil(images)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise InvalidImageError(f"the image is {size} bytes, the limit is {MAX_BYTES}: send a smaller one")


def _read(name: str) -> bytes:
    if not name:  # `Path("")` is the current folder
        raise InvalidImageError("the path is empty: give that of a file")
    path = Path(name)
    try:
        if path.is_dir():
            raise InvalidImageError("this is a folder: give its files one by one")
        if path.exists() and not path.is_file():
            raise InvalidImageError("this is not a regular file: give one, or its bytes")
        _check_size(path.stat().st_size)  # before it is read
        return path.read_bytes()
    except FileNotFoundError:
        raise InvalidImageError("no such file: check the path") from None
    except (OSError, ValueError) as error:  # no permission, a null byte in the name
        raise InvalidImageError(f"the file cannot be read ({error})") from error


def _encode_array(array: np.ndarray) -> bytes:
    if array.dtype != np.uint8:
        raise InvalidImageError(f"the array is {array.dtype}: give uint8, 0 to 255")
    rgb = array.ndim == 3 and array.shape[2] == 3
    if not (rgb or array.ndim == 2) or array.size == 0:
        hint = "; this looks like [3,H,W], transpose it" if array.ndim == 3 and array.shape[0] == 3 else ""
        raise InvalidImageError(f"the array's shape is {list(array.shape)}: give [H,W,3], RGB, or [H,W], grey{hint}")
    return _encode_pil(pillow().fromarray(array))


def _encode_pil(image: Any) -> bytes:
    if image.mode not in PNG_MODES and image.mode.startswith(("I", "F")):  # RGB would clip what is above 255
        raise InvalidImageError(f"the PIL image's mode is {image.mode}: scale it to 8 bits (mode L), or give I;16")
    try:
        image.load()  # which turns a TIFF upright
        exif = _orientation(image)  # kept, so that the answer is the same as for the file
        if image.mode not in PNG_MODES:
            image = image.convert("RGB")
        buffer = io.BytesIO()
        image.save(buffer, "PNG", compress_level=1, exif=exif)
        return buffer.getvalue()
    except (OSError, SyntaxError, ValueError) as error:  # decoded only now, and the file is damaged or closed
        raise InvalidImageError(f"the PIL image cannot be encoded ({error})") from error


def _orientation(image: Any) -> Any:
    """EXIF data with only the orientation: Pillow cannot write all that it reads, and the server needs no more."""
    kept = pillow().Exif()
    with contextlib.suppress(Exception):  # none, or damaged: no reason to refuse a picture
        if (turn := int(image.getexif()[ORIENTATION])) in range(2, 9):
            kept[ORIENTATION] = turn
    return kept


def _is_pil(image: Any) -> bool:
    module = sys.modules.get("PIL.Image")  # not imported: then nothing is a PIL image
    return module is not None and isinstance(image, module.Image)


def pillow() -> Any:
    """``PIL.Image``. Raises `InvalidImageError` where it is not installed."""
    try:
        import PIL.Image
    except ImportError:
        raise InvalidImageError("arrays and overlays need Pillow: pip install pillow, or give encoded bytes") from None
    return PIL.Image
