"""A bad image is refused in words; nothing else happens to the server."""

import contextlib
import io
import resource
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(size=(64, 48)):
    rng = np.random.default_rng(1)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png_header(width, height):
    body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", 13)
        + b"IHDR"
        + body
        + struct.pack(">I", zlib.crc32(b"IHDR" + body))
        + struct.pack(">I", 1 << 20)
        + b"IDAT"
    )


def gif_header(width, height):
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + frame


def bmp_header(width, height):
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def webp_header(width, height):
    bits = (width - 1) | ((height - 1) << 14)
    body = b"VP8L" + struct.pack("<I", 6) + b"\x2f" + struct.pack("<I", bits) + b"\0"
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def jpeg_header(width, height):
    data = bytearray(encode(Image.new("RGB", (16, 16)), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        png_header(50_000, 50_000),
        gif_header(50_000, 50_000),
        bmp_header(50_000, -50_000),
        webp_header(16_383, 16_383),
        jpeg_header(50_000, 50_000),
        png_header(2**31 - 1, 2**31 - 1),
        png_header(9_460, 9_460),  # just over the limit: Pillow alone would only warn
    ],
    ids=["png", "gif", "bmp", "webp", "jpeg", "huge", "just-over"],
)
def test_pixels_are_counted_before_decoding(transform, settings, data):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
    with pytest.raises(transform.ImageError, match=r"pixels.*limit.*89478485.*send a smaller image"):
        transform.preprocess(data, settings)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_pixel_limit_is_the_configured_one(transform, kind):
    data = encode(photo((20, 10)), kind)
    limit = transform.Settings(8, 8, "bicubic", max_pixels=200)
    assert transform.preprocess(data, limit).shape == (8, 8, 3)
    with pytest.raises(transform.ImageError, match=r"200 pixels|20 x 10 pixels"):
        transform.preprocess(data, transform.Settings(8, 8, "bicubic", max_pixels=199))


def test_a_thin_image_does_not_explode_when_resized(transform, settings):
    """1 x 100,000 pixels with the shorter side made 36 would be 36 x 3,600,000."""
    data = encode(Image.new("L", (1, 100_000)))
    with pytest.raises(transform.ImageError, match="1 x 100000 image, resized for the network, is 36 x 3600000 pixels"):
        transform.preprocess(data, settings)


def test_file_size(transform):
    data = encode(photo())
    assert transform.preprocess(data, transform.Settings(8, 8, "bicubic", max_file_bytes=len(data))).shape == (8, 8, 3)
    with pytest.raises(transform.ImageError, match=f"{len(data)} bytes, the limit is {len(data) - 1}"):
        transform.preprocess(data, transform.Settings(8, 8, "bicubic", max_file_bytes=len(data) - 1))


def test_empty(transform, settings):
    with pytest.raises(transform.ImageError, match="empty"):
        transform.preprocess(b"", settings)


@pytest.mark.parametrize(
    "data",
    [
        b"hello world",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"\0" * 1000,
        encode(photo(), "TIFF"),
        b"RIFF\x24\0\0\0WAVEfmt ",
    ],
    ids=["text", "svg", "pdf", "zeros", "tiff", "wave"],
)
def test_other_formats_are_named_by_their_beginning(transform, settings, data):
    with pytest.raises(transform.ImageError) as caught:
        transform.preprocess(data, settings)
    assert "JPEG, PNG, WebP, BMP or GIF" in str(caught.value)
    assert repr(data[:8]) in str(caught.value)


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBP"])
def test_a_header_cut_off_is_not_called_another_format(transform, settings, data):
    with pytest.raises(transform.ImageError, match="truncated or damaged"):
        transform.preprocess(data, settings)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_truncated_anywhere(transform, settings, kind):
    """Each cut is refused or (the end of the file holds no pixel) answered; any other exception fails the test."""
    data = encode(photo(), kind)
    refused = 0
    for cut in np.linspace(1, len(data) - 1, 60).astype(int):
        try:
            assert transform.preprocess(data[:cut], settings).shape == (32, 32, 3)
        except transform.ImageError:
            refused += 1
    assert refused >= 50


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
@given(st.data())
@hypothesis_settings(max_examples=60, deadline=None)
def test_damaged_anywhere(transform, kind, data):
    image = bytearray(encode(photo((17, 13)), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        image[data.draw(st.integers(0, len(image) - 1))] = data.draw(st.integers(0, 255))
    limits = transform.Settings(8, 8, "bicubic", max_pixels=100_000)
    with contextlib.suppress(transform.ImageError):
        assert transform.preprocess(bytes(image), limits).shape == (8, 8, 3)


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"RIFF\0\1\0\0WEBP"]),
)
@hypothesis_settings(max_examples=200, deadline=None)
def test_garbage(transform, rest, magic):
    limits = transform.Settings(8, 8, "bicubic", max_pixels=100_000)
    with contextlib.suppress(transform.ImageError):
        assert transform.preprocess(magic + rest, limits).shape == (8, 8, 3)


@pytest.mark.parametrize(
    "failure",
    [
        struct.error("x"),
        SyntaxError("x"),
        OSError("x" * 9999),
        ValueError("x"),
        RecursionError("x"),
        IndexError("x"),
        Image.DecompressionBombError("Image size (5 pixels) exceeds limit of 4 pixels, could be"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_decoder_raises(transform, settings, monkeypatch, failure):
    data = encode(photo())

    def broken(self):
        raise failure

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", broken, raising=False)
    with pytest.raises(transform.ImageError, match=r"truncated or damaged|send a smaller image") as caught:
        transform.preprocess(data, settings)
    assert len(str(caught.value)) < 400
