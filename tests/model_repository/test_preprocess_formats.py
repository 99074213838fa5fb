"""What each kind of file turns into, against pixels known by construction."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
SIDE = 32


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def plain(transform):
    """A step that neither resizes nor crops a SIDE x SIDE picture."""
    return transform.Settings(SIDE, SIDE, "bicubic")


def quarters(mode="RGB"):
    """Red and green above, blue and yellow below."""
    image = Image.new("RGB", (SIDE, SIDE))
    half = SIDE // 2
    for colour, corner in zip((RED, GREEN, BLUE, YELLOW), ((0, 0), (half, 0), (0, half), (half, half)), strict=True):
        image.paste(colour, (*corner, corner[0] + half, corner[1] + half))
    return image.convert(mode)


def assert_quarters(pixels, tolerance=0):
    for (row, column), colour in {(8, 8): RED, (8, 24): GREEN, (24, 8): BLUE, (24, 24): YELLOW}.items():
        assert np.abs(pixels[row, column].astype(int) - colour).max() <= tolerance, (row, column, pixels[row, column])


@pytest.mark.parametrize(("kind", "tolerance"), [("PNG", 0), ("BMP", 0), ("GIF", 0), ("JPEG", 6), ("WEBP", 12)])
def test_colours(transform, plain, kind, tolerance):
    assert_quarters(transform.preprocess(encode(quarters(), kind), plain), tolerance)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(transform, plain, kind, orientation):
    undo = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # the transposition that a viewer's one undoes
    stored = quarters()
    if orientation != 1:
        marker = Image.Exif()
        marker[0x0112] = undo[orientation]
        turned = Image.open(io.BytesIO(encode(stored, "PNG", exif=marker)))
        turned.load()
        stored = ImageOps.exif_transpose(turned)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_quarters(transform.preprocess(encode(stored, kind, exif=exif), plain), 0 if kind == "PNG" else 12)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_unknown_orientation_is_upright(transform, plain, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_quarters(transform.preprocess(encode(quarters(), "JPEG", exif=exif), plain), 6)


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"no"]
)
def test_damaged_exif_is_upright(transform, plain, exif):
    assert_quarters(transform.preprocess(encode(quarters(), "JPEG", exif=exif), plain), 6)


def test_exif_that_raises_is_upright(transform, plain, monkeypatch):
    def broken(self):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    monkeypatch.setattr(Image.Exif, "load", broken)
    assert transform.read_orientation(quarters()) == 1


def test_16_bit_grey_is_scaled_not_clipped(transform, plain):
    ramp = np.linspace(0, 65535, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
    pixels = transform.preprocess(encode(Image.fromarray(ramp)), plain)
    np.testing.assert_array_equal(pixels[..., 0], ramp >> 8)
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_16_bit_colour_png(transform, plain):
    rows = b"".join(b"\0" + struct.pack(">HHH", 0xFFFF, 0x8000, 0x00FF) * SIDE for _ in range(SIDE))

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert transform.preprocess(data, plain)[5, 5].tolist() == [0xFF, 0x80, 0x00]


def test_transparency_is_dropped_like_in_training(transform, plain):
    image = quarters("RGBA")
    image.putalpha(Image.new("L", (SIDE, SIDE), 0))
    assert_quarters(transform.preprocess(encode(image), plain))


@pytest.mark.parametrize("transparency", [0, bytes(range(0, 256, 4))])
def test_palette_with_transparency(transform, plain, transparency):
    assert_quarters(transform.preprocess(encode(quarters("P"), transparency=transparency), plain), 1)


def test_inverted_adobe_cmyk(transform, plain):
    """JPEG's CMYK is stored inverted with an Adobe marker: red must not come out as cyan."""
    assert_quarters(transform.preprocess(encode(quarters("CMYK"), "JPEG", quality=100, subsampling=0), plain), 10)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(transform, plain, kind):
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert transform.preprocess(data, plain)[3, 3].tolist() == list(RED)


def test_small_image_grows_to_the_crop(transform, settings):
    assert (transform.preprocess(encode(Image.new("RGB", (2, 3), BLUE)), settings) == BLUE).all()


def test_too_small_a_resize_pads_with_black(transform):
    pixels = transform.preprocess(encode(Image.new("RGB", (9, 9), RED)), transform.Settings(12, 9, "bicubic"))
    assert (pixels[1:10, 1:10] == RED).all()  # 3 black lines: 1 before, 2 after
    assert pixels.sum() == 255 * 81
