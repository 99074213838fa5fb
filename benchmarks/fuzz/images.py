"""Valid image files of every accepted format, which the mutations start from."""

import functools
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from benchmarks.photographs import encoded


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Gradients and noise: neither flat nor incompressible."""
    y, x = np.mgrid[0:height, 0:width]
    base = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1)
    noise = np.random.default_rng(seed).integers(0, 64, base.shape)
    return Image.fromarray((base * 3 // 4 + noise).astype(np.uint8))


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "a camera"
    return tags


@functools.cache
def good() -> dict[str, bytes]:
    """Files that must always get the same answer."""
    plain = picture(61, 43)
    return {
        "JPEG": encoded(plain, "JPEG"),
        "PNG": encoded(plain, "PNG"),
        "WEBP": encoded(plain, "WEBP"),
        "BMP": encoded(plain, "BMP"),
        "GIF": encoded(plain, "GIF"),
        "JPEG large": encoded(picture(600, 400), "JPEG"),
    }


@functools.cache
def seeds() -> list[bytes]:
    plain, alpha = picture(61, 43), picture(33, 47).convert("RGBA")
    frames = [picture(40, 30, seed) for seed in range(3)]
    grey16 = Image.fromarray((np.asarray(picture(37, 29).convert("L")).astype(np.uint16) << 8) + 7)
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 300, zip=True)
    animated: dict[str, Any] = {"save_all": True, "append_images": frames[1:], "duration": 50}
    return [
        *good().values(),
        encoded(plain, "JPEG", progressive=True, quality=60),
        encoded(plain.convert("L"), "JPEG"),
        encoded(plain.convert("CMYK"), "JPEG"),
        encoded(plain, "JPEG", exif=exif(6)),
        encoded(plain, "JPEG", restart_marker_blocks=2, subsampling=0),
        encoded(plain, "JPEG", icc_profile=b"profile" * 40, comment=b"a comment"),
        encoded(alpha, "PNG"),
        encoded(grey16, "PNG"),
        encoded(plain.convert("P"), "PNG", transparency=3),
        encoded(plain.convert("1"), "PNG"),
        encoded(plain.convert("LA"), "PNG", pnginfo=text),
        encoded(plain, "PNG", exif=exif(3), icc_profile=b"profile" * 40),
        encoded(frames[0], "PNG", **animated),
        encoded(plain, "WEBP", lossless=True),
        encoded(alpha, "WEBP", exif=exif(8).tobytes()),
        encoded(frames[0], "WEBP", **animated),
        encoded(plain.convert("P"), "BMP"),
        encoded(plain.convert("1"), "BMP"),
        encoded(alpha, "BMP"),
        encoded(plain.convert("P"), "GIF", interlace=1),
        encoded(frames[0], "GIF", **animated, loop=0),
        encoded(Image.new("L", (1, 1)), "PNG"),
        encoded(Image.new("L", (1, 200)), "BMP"),
    ]
