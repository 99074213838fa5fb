"""Which values are accepted as an image, and the errors for those that are not."""

import io
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client import InvalidImageError, _images
from client._images import describe, encode


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_files_and_bytes_go_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"encoded")
    images = [file, str(file), b"encoded", bytearray(b"encoded"), memoryview(b"encoded")]
    assert [encode(image) for image in images] == [b"encoded"] * 5


def test_array_loses_nothing() -> None:
    array = noise(7, 5, 3)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode(array)))), array)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encode(array[:, ::-1])))), array[:, ::-1])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I;16B"])
def test_pil_image_of_every_mode(mode: str) -> None:
    image = Image.new(mode, (6, 4), 1)
    decoded = Image.open(io.BytesIO(encode(image)))
    assert decoded.format == "PNG"
    assert decoded.size == (6, 4)
    np.testing.assert_array_equal(decoded.convert("RGB"), image.convert("RGB"))


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_sixteen_bits_stay(mode: str) -> None:
    decoded = Image.open(io.BytesIO(encode(Image.new(mode, (6, 4), 1000))))
    assert np.unique(decoded).tolist() == [1000]


@pytest.mark.parametrize("mode", ["I", "F", "I;16L"])
def test_wider_greys_are_not_clipped(mode: str) -> None:
    with pytest.raises(InvalidImageError, match=rf"mode is {mode}: scale it to 8 bits \(mode L\), or give I;16"):
        encode(Image.new(mode, (6, 4), 1000))


@pytest.mark.parametrize(
    ("kind", "turn", "turned"),
    [("JPEG", 2, False), ("JPEG", 6, False), ("JPEG", 8, False), ("PNG", 6, False), ("TIFF", 6, True)],
)
def test_pil_image_keeps_its_orientation(kind: str, turn: int, turned: bool) -> None:
    """Pillow itself turns a TIFF upright when it is loaded."""
    exif = Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    Image.fromarray(noise(4, 6, 3)).save(file, kind, exif=exif)
    encoded = Image.open(io.BytesIO(encode(Image.open(file))))
    assert encoded.getexif().get(0x0112) == (None if turned else turn)
    assert encoded.size == ((4, 6) if turned else (6, 4))


@pytest.mark.parametrize("tag", [0x011A, 0x0112])
def test_pil_image_with_damaged_exif(tag: int) -> None:
    """A resolution that is text, which Pillow reads but cannot write; an orientation that is text."""
    entry = struct.pack("<HHII", tag, 2, 4, int.from_bytes(b"odd\0", "little"))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    file = io.BytesIO()
    Image.fromarray(noise(4, 6, 3)).save(file, "JPEG", exif=exif)
    image = Image.open(file)
    assert image.getexif()[tag] == "odd"
    encoded = Image.open(io.BytesIO(encode(image)))
    assert encoded.size == image.size
    assert dict(encoded.getexif()) == {}


def test_a_grey_array() -> None:
    grey = noise(4, 6)
    encoded = Image.open(io.BytesIO(encode(grey)))
    assert encoded.mode == "L"
    assert np.array_equal(np.asarray(encoded), grey)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "empty (0 bytes): save it again"),
        (noise(4, 4, 3).astype(np.float32), "float32"),
        (noise(3, 8, 9), "[3, 8, 9]: give [H,W,3], RGB, or [H,W], grey; this looks like [3,H,W]"),
        (noise(8), "[8]"),
        (noise(0, 9), "[0, 9]"),
        (noise(8, 9, 4), "[8, 9, 4]"),
        (noise(0, 9, 3), "[0, 9, 3]"),
        (noise(2, 8, 9, 3), "[2, 8, 9, 3]"),
        (3.5, "float is not an image"),
        (None, "NoneType is not an image"),
        ("/no/such/file.png", "no such file"),
        ("", "the path is empty"),
        ("null\0byte.png", "cannot be read"),
        ("/dev/null", "not a regular file"),
    ],
)
def test_what_is_no_image(image: object, words: str) -> None:
    with pytest.raises(InvalidImageError) as caught:
        encode(image)
    assert words in str(caught.value)


def test_an_entry_of_a_folder_that_was_named_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    (entry,) = os.scandir(os.fsencode(tmp_path))
    assert encode(entry) == b"a"


def test_folder_and_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(InvalidImageError, match="folder"):
        encode(tmp_path)
    with pytest.raises(InvalidImageError, match="empty"):
        encode(tmp_path / "empty.png")


def test_file_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "huge.png"
    with file.open("wb") as stream:
        stream.truncate(_images.MAX_BYTES + 1)  # sparse: takes no room
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was read"))
    with pytest.raises(InvalidImageError, match="the limit is"):
        encode(file)


def test_bytes_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_images, "MAX_BYTES", 5)
    assert encode(b"12345") == b"12345"
    with pytest.raises(InvalidImageError, match="6 bytes, the limit is 5"):
        encode(b"123456")


def test_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)  # root may read every file
    (tmp_path / "secret.png").write_bytes(b"x")
    with pytest.raises(InvalidImageError, match=r"cannot be read .*Permission denied"):
        encode(tmp_path / "secret.png")


def test_truncated_pil_image(picture: Callable[..., bytes]) -> None:
    with pytest.raises(InvalidImageError, match="cannot be encoded"):
        encode(Image.open(io.BytesIO(picture("red")[:60])))


def test_array_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InvalidImageError, match="pip install pillow"):
        encode(noise(4, 4, 3))


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("a/b.png", "a/b.png"),
        (Path("a/b.png"), "a/b.png"),
        (next(entry for entry in os.scandir(b"/") if entry.name == b"dev"), "/dev"),
        (b"12345", "<5 bytes>"),
        (noise(4, 5, 3), "<array uint8 [4, 5, 3]>"),
        (Image.new("RGB", (5, 4)), "<PIL image RGB 5 x 4>"),
        (3.5, "<float>"),
    ],
)
def test_names_for_messages(image: object, name: str) -> None:
    assert describe(image) == name
