"""Real image files of every kind that is accepted, to start from."""

import functools
import io
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Slopes and noise: neither flat nor incompressible."""
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
    """Files that must be answered, and always the same."""
    plain = picture(61, 43)
    return {
        "JPEG": encode(plain, "JPEG"),
        "PNG": encode(plain, "PNG"),
        "WEBP": encode(plain, "WEBP"),
        "BMP": encode(plain, "BMP"),
        "GIF": encode(plain, "GIF"),
        "JPEG large": encode(picture(600, 400), "JPEG"),
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
        encode(plain, "JPEG", progressive=True, quality=60),
        encode(plain.convert("L"), "JPEG"),
        encode(plain.convert("CMYK"), "JPEG"),
        encode(plain, "JPEG", exif=exif(6)),
        encode(plain, "JPEG", restart_marker_blocks=2, subsampling=0),
        encode(plain, "JPEG", icc_profile=b"profile" * 40, comment=b"a comment"),
        encode(alpha, "PNG"),
        encode(grey16, "PNG"),
        encode(plain.convert("P"), "PNG", transparency=3),
        encode(plain.convert("1"), "PNG"),
        encode(plain.convert("LA"), "PNG", pnginfo=text),
        encode(plain, "PNG", exif=exif(3), icc_profile=b"profile" * 40),
        encode(frames[0], "PNG", **animated),
        encode(plain, "WEBP", lossless=True),
        encode(alpha, "WEBP", exif=exif(8).tobytes()),
        encode(frames[0], "WEBP", **animated),
        encode(plain.convert("P"), "BMP"),
        encode(plain.convert("1"), "BMP"),
        encode(alpha, "BMP"),
        encode(plain.convert("P"), "GIF", interlace=1),
        encode(frames[0], "GIF", **animated, loop=0),
        encode(Image.new("L", (1, 1)), "PNG"),
        encode(Image.new("L", (1, 200)), "BMP"),
    ]
