"""A part of what Pillow's `resize` makes of an RGB picture, to the bit.

Where $WIDEFIELD_RESIZE names the library (server/backends/resize/), several times as fast as Pillow, whose own loops
take most of the time of a photograph's way to the network. What the library is not for, Pillow does.
"""

import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype, capsule_pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
Box = tuple[float, float, float, float]  # left, top, right, bottom
FILTERS = {Image.Resampling.BILINEAR: 0, Image.Resampling.BICUBIC: 1}
MAX_COPIED = 2**24  # pixels, four bytes each: the library may have to read a copy of the picture
MAX_SCALE = 64  # pixels that one is made of along a row: beyond, the library's weights are larger than the picture


class ArrowArray(ctypes.Structure):
    """Of the Arrow C data interface: https://arrow.apache.org/docs/format/CDataInterface.html."""


ArrowArray._fields_ = [
    *((name, ctypes.c_int64) for name in ("length", "null_count", "offset", "n_buffers", "n_children")),
    ("buffers", ctypes.POINTER(ctypes.c_void_p)),
    ("children", ctypes.POINTER(ctypes.POINTER(ArrowArray))),
]  # what follows is not read


class Shared(NamedTuple):
    """Pillow's own memory of a picture, [H,W,4] of uint8, for as long as `owner` lives."""

    address: int
    owner: Any


def share(image: Image.Image) -> Shared | None:
    """None where the picture lies in several pieces (beyond 16 MB), or this Pillow shares none or in another form."""
    try:
        _, owner = image.__arrow_c_array__()
        levels = ArrowArray.from_address(capsule_pointer(owner, b"arrow_array")).children[0].contents
        whole = (levels.length, levels.offset) == (4 * image.width * image.height, 0)
        return Shared(levels.buffers[1], owner) if whole and levels.buffers[1] else None
    except (AttributeError, ValueError):  # a null pointer is one of these
        return None


def resize_part(
    image: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling,
    window: tuple[int, int, int, int],
    box: Box | None = None,
) -> np.ndarray:
    """`image.resize(size, resample, box).crop(window)` as an array [H,W,3] of uint8; the window lies within."""
    whole = (0.0, 0.0, float(image.width), float(image.height))
    box = box or whole
    if image.size == size and box == whole:
        return np.asarray(image.crop(window))
    if NATIVE is not None and is_native(image.size, size):
        return NATIVE(image, size, resample, window, box)
    return np.asarray(image.resize(size, resample, box).crop(window))


def is_native(old: tuple[int, int], new: tuple[int, int]) -> bool:
    """Whether the library may take it. Where the height loses more than twice as many pixels as the width, Pillow from
    13 on resizes columns first, which rounds otherwise; not near that either."""
    (width, height), (to_width, to_height) = old, new
    rows_first = height <= to_height or height - to_height + 4 <= 2 * (width - to_width)
    return rows_first and width <= MAX_SCALE * to_width and width * height <= MAX_COPIED


def load(path: str | None) -> Callable[..., np.ndarray] | None:
    """The library's `resize_part`; None without a library, or where this Pillow computes something else.

    Raises `OSError` for one that is missing or of another kind of processor.
    """
    if not path:
        return None
    library = ctypes.CDLL(path)
    avx2 = library.widefield_has_avx2()

    def native(image: Image.Image, size: tuple[int, int], resample: int, window: tuple[int, ...], box: Box):
        out = np.empty((window[3] - window[1], window[2] - window[0], 3), np.uint8)
        shared = share(image)
        failed = library.widefield_resize_part(
            image.tobytes("raw", "RGBX") if shared is None else ctypes.c_void_p(shared.address),
            *image.size,
            (ctypes.c_float * 4)(*box),
            (ctypes.c_int * 2)(*size),
            FILTERS[resample],
            (ctypes.c_int * 4)(*window),
            avx2,
            ctypes.c_void_p(out.ctypes.data),
        )
        if failed:
            raise MemoryError("no memory left to resize the image")
        return out

    if not agrees(native):
        print(f"{path} and Pillow {Image.__version__} resize differently: Pillow does it, more slowly", file=sys.stderr)
        return None
    return native


def agrees(native: Callable[..., np.ndarray]) -> bool:
    """A picture of noise of odd width, larger, smaller and in part: a Pillow to come may round otherwise."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 91, 3)).astype(np.uint8))
    for resample in FILTERS:
        for size, box in (((51, 34), (0, 0, 91, 60)), ((120, 80), (0, 0, 91, 60)), ((32, 21), (0, 0, 90.5, 59.5))):
            expected = np.asarray(image.resize(size, resample, box))
            if not np.array_equal(native(image, size, resample, (0, 0, *size), box), expected):
                return False
    return True


NATIVE = load(os.environ.get("WIDEFIELD_RESIZE"))
