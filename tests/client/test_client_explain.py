"""``python -m client explain`` and `overlay`."""

import io
import struct
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from commands_fakes import CAT
from PIL import Image

from client import Answer, Crop, Explanation, ModelNotFoundError, overlay
from client.commands import main
from client.testing import FakeTransport
from tests.full_disk import files_up_to

MAP = np.array([[0.0, 4.0], [-3.0, 2.0]], np.float32)


def gradient(request: Any) -> Any:
    assert request.class_map
    assert request.model == "classifier_explained"
    return Answer(CAT, MAP, Crop(3 / 8, 1 / 4, 5 / 8, 3 / 4))


def test_explain(served: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    served.reply = gradient
    for folder in ("one", "two"):
        Path(folder).mkdir()
        Image.new("RGB", (64, 32), (10, 20, 30)).save(f"{folder}/a.png")
    Path("bad.png").write_bytes(b"text")
    assert main(["explain", "one", "two", "bad.png", "no.png", "--output", "out", "--top", "2"]) == 1
    assert {request.top for request in served.requests} == {2}
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "a.png.explained.2.png",
        "a.png.explained.png",
        "explained.csv",
    ]
    picture = np.asarray(Image.open("out/a.png.explained.png"))
    assert picture.shape == (32, 64, 3)
    inside = np.zeros((32, 64), bool)
    inside[8:24, 24:40] = True
    assert (picture[~inside] == (10, 20, 30)).all()
    assert (picture[inside] != (10, 20, 30)).any(axis=1).all()
    assert picture[9, 38, 0] > 120 > picture[22, 25, 0]  # warm where the evidence is, cold where it speaks against
    out, err = capsys.readouterr()
    assert "[cat]" in out
    assert "cannot be decoded here" in err
    assert "2 overlays in out, which explained.csv there lists" in err


@pytest.mark.parametrize(
    ("crop", "covered"),
    [
        (Crop(), (slice(0, 32), slice(0, 64))),
        (Crop(0, -0.5, 1, 1.5), (slice(0, 32), slice(0, 64))),  # padded
        (Crop(0.25, 0.5, 0.25001, 0.50001), (slice(16, 17), slice(16, 17))),
        (Crop(0.2584, 0.5, 0.2586, 0.54), (slice(16, 18), slice(16, 17))),  # within a pixel, and a part of one
    ],
)
def test_the_map_lies_where_the_model_looked(crop: Crop, covered: tuple[slice, slice]) -> None:
    data = io.BytesIO()
    Image.new("RGB", (64, 32), (10, 20, 30)).save(data, "PNG")
    picture = np.asarray(overlay(data.getvalue(), Explanation(CAT, MAP, crop)))
    inside = np.zeros((32, 64), bool)
    inside[covered] = True
    np.testing.assert_array_equal((picture != (10, 20, 30)).any(axis=2), inside)


def test_what_lies_beyond_the_picture_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The crop of a padded panorama is a square of its longer side."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 4)
    above, below = np.array([[9.0], [0.0]], np.float32), np.array([[0.0], [9.0]], np.float32)
    crop = Crop(0, 0, 1, 16)  # its upper end alone is in the picture
    hot, cold = (np.asarray(overlay(Image.new("RGB", (64, 4)), Explanation(CAT, of, crop))) for of in (above, below))
    assert (hot[..., 0] > 120).all()
    assert (cold == (0, 0, 64)).all()


def test_colours() -> None:
    """Blue without evidence, orange at half of the maximum, pale yellow at the maximum."""
    rising = np.linspace(-1, 2, 97, dtype=np.float32)[None]
    colours = np.asarray(overlay(Image.new("RGB", (97, 1)), Explanation(CAT, rising), strength=1))[0]
    expected = {0: (0, 0, 128), 32: (0, 0, 128), 64: (255, 80, 0), 96: (255, 255, 160)}
    for column, colour in expected.items():
        np.testing.assert_allclose(colours[column], colour, atol=8)
    against = overlay(Image.new("RGB", (9, 1)), Explanation(CAT, np.array([[-2.0, -1.0]], np.float32)), strength=1)
    assert (np.asarray(against) == (0, 0, 128)).all()
    coarse = overlay(Image.new("RGB", (97, 1)), Explanation(CAT, np.array([[0.0, 1.0]], np.float32)), strength=1)
    assert len(np.unique(np.asarray(coarse)[0], axis=0)) > 20  # its cells run into each other


def test_explain_without_a_class_map(served: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    Path("a.png").write_bytes(b"a")
    served.reply = ModelNotFoundError("the server has no model 'classifier_explained'")
    assert main(["explain", "a.png"]) == 1
    assert "classifier_explained" in capsys.readouterr().err
    served.reply = CAT
    assert main(["explain", "a.png"]) == 1
    assert "no class map" in capsys.readouterr().err


def test_a_missing_class_map_ends_it_at_once(served: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    Path("photos").mkdir()
    for number in range(20):
        Path("photos", f"{number}.png").write_bytes(b"a")
    served.reply = ModelNotFoundError("the server has no model 'classifier_explained'")
    assert main(["explain", "photos", "--concurrency", "1"]) == 1
    assert len(served.requests) == 1
    assert capsys.readouterr().err.splitlines() == [
        "photos/0.png: the server has no model 'classifier_explained'",
        "1 not answered",
        "stopped: no server has the model 'classifier_explained', 19 not sent",
    ]


@pytest.mark.parametrize("output", ["file", "file/below"])
def test_explain_into_a_file_is_wrong_usage(output: str, served: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    Path("file").write_text("mine")
    Path("a.png").write_bytes(b"a")
    assert main(["explain", "a.png", "--output", output]) == 2
    assert f"error: --output {output} cannot be a folder (" in capsys.readouterr().err
    assert Path("file").read_text() == "mine"
    assert served.requests == []


def test_explain_without_pillow_asks_nothing(
    served: FakeTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    Image.new("L", (8, 8)).save("a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert main(["explain", "a.png"]) == 1
    assert capsys.readouterr().err.endswith("Pillow, which is not installed: pip install pillow\n")
    assert served.requests == []
    assert not Path("explained").exists()


def test_explain_on_a_full_disk(served: FakeTransport, capsys: pytest.CaptureFixture) -> None:
    served.reply = gradient
    Image.new("L", (8, 8)).save("a.png")
    with files_up_to(50):
        assert main(["explain", "a.png"]) == 1
    said = "explained/a.png.explained.png cannot be written (File too large): make room, or name another --output"
    assert capsys.readouterr().err == f"python -m client explain: {said}\n"
    assert list(Path("explained").iterdir()) == []


def test_explain_a_file_that_is_away(served: FakeTransport) -> None:
    assert main(["explain", "*.tiff"]) == 1
    assert served.requests == []


def test_explain_standard_input(served: FakeTransport, monkeypatch: pytest.MonkeyPatch) -> None:
    served.reply = gradient
    data = io.BytesIO()
    Image.new("L", (8, 8)).save(data, "PNG")
    data.seek(0)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=data))
    assert main(["explain", "-"]) == 0
    assert Path("explained/stdin.explained.png").exists()


def test_overlay_turns_the_picture_as_the_server_does() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    Image.new("RGB", (40, 20)).save(data, "JPEG", exif=exif)
    assert overlay(data.getvalue(), Explanation(CAT, MAP)).size == (20, 40)
    tags = struct.pack("<HHII", 0x112, 3, 1, 6) + struct.pack("<HHI4s", 0x11A, 2, 4, b"300")  # a resolution in text
    data = io.BytesIO()
    Image.new("RGB", (40, 20)).save(data, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0" + tags + b"\0" * 4)
    assert overlay(data.getvalue(), Explanation(CAT, MAP)).size == (20, 40)
    assert overlay(data.getvalue(), Explanation(CAT, MAP), least=30).size == (20, 40)
    assert overlay(data.getvalue(), Explanation(CAT, MAP), least=80).size == (40, 80)
    with pytest.raises(ValueError, match="strength is 2"):
        overlay(data.getvalue(), Explanation(CAT, MAP), strength=2)


def test_16_bit_grey_keeps_its_high_byte_as_on_the_server() -> None:
    picture = overlay(Image.fromarray(np.full((8, 8), 0x1234, np.uint16)), Explanation(CAT, MAP, Crop(0, 0, 0.5, 1)))
    assert picture.getpixel((7, 7)) == (0x12, 0x12, 0x12)


def test_wrong_usage_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", None)  # nor is it read
    assert main(["explain", "-", "--url", "bad://x"]) == 2
    assert not list(tmp_path.iterdir())


def test_the_name_of_a_picture_is_cut_by_bytes(served: FakeTransport) -> None:
    served.reply = gradient
    Image.new("L", (8, 8)).save(f"{'字' * 82}.png")
    assert main(["explain", f"{'字' * 82}.png"]) == 0
    assert Path("explained", f"{'字' * 65}.png.explained.png").exists()
