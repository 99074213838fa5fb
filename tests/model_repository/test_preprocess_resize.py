"""The library's resize is Pillow's, to the bit, wherever it is taken; and where it is not, Pillow's own is."""

import ctypes
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from server.backends import build

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC
sides = st.integers(1, 300)


@pytest.fixture(scope="module")
def resize(transform):
    return sys.modules["pillow_resize"]


@pytest.fixture(scope="module", params=["this processor's", "any processor's"])
def native(request, transform):
    """The library's function, with the fast loops and without."""
    resize = sys.modules["pillow_resize"]
    if request.param == "this processor's":
        return resize.NATIVE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda path, load=ctypes.CDLL: WithoutAvx2(load(path)))
        return resize.load(str(build.RESIZE.output))


class WithoutAvx2:
    def __init__(self, library):
        self.widefield_resize_part = library.widefield_resize_part

    def widefield_has_avx2(self):
        return 0


def picture(width, height, kind, seed=0):
    """Noise, or black and white alone: every sum that can overflow a level does."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray((values if kind == "noise" else (values > 127) * 255).astype(np.uint8))


@given(
    sides, sides, sides, sides, st.sampled_from(["noise", "extremes"]), st.sampled_from([BILINEAR, BICUBIC]), st.data()
)
@hypothesis_settings(max_examples=300, deadline=None)
def test_any_part_of_any_size(native, resize, width, height, to_width, to_height, kind, resample, data):
    assume(resize.is_native((width, height), (to_width, to_height)))
    image = picture(width, height, kind)
    box = (0, 0, *(side - data.draw(st.sampled_from([0, 0.25, 0.875])) for side in image.size))
    left, top = data.draw(st.integers(0, to_width - 1)), data.draw(st.integers(0, to_height - 1))
    window = (left, top, data.draw(st.integers(left + 1, to_width)), data.draw(st.integers(top + 1, to_height)))
    expected = np.asarray(image.resize((to_width, to_height), resample, box).crop(window))
    np.testing.assert_array_equal(native(image, (to_width, to_height), resample, window, box), expected)


@pytest.mark.parametrize(
    ("old", "new", "taken"),
    [
        ((960, 640), (384, 256), True),
        ((480, 850), (256, 453), True),  # a telephone's, upright
        ((100, 205), (50, 102), False),  # near where Pillow 13 begins with the columns
        ((100, 400), (50, 200), False),
        ((100, 30), (120, 36), True),
        ((1, 40), (1, 20), False),  # there too
        ((2, 1), (1, 1), True),
        ((6500, 1), (100, 1), False),
        ((5000, 4000), (320, 256), False),  # 20 megapixels: no second copy of them
        ((4600, 3600), (327, 256), True),
    ],
)
def test_what_the_library_takes(resize, monkeypatch, old, new, taken):
    calls = []
    monkeypatch.setattr(
        resize, "NATIVE", lambda *arguments, native=resize.NATIVE: calls.append(1) or native(*arguments)
    )
    image, window = picture(*old, "noise"), (0, 0, min(new[0], 40), min(new[1], 30))
    expected = np.asarray(image.resize(new, BICUBIC).crop(window))
    np.testing.assert_array_equal(resize.resize_part(image, new, BICUBIC, window), expected)
    assert bool(calls) == taken


def test_the_same_without_the_library(resize, monkeypatch):
    image, size, window = picture(90, 60, "noise"), (45, 30), (3, 4, 41, 29)
    box = (0.0, 0.0, 89.5, 60.0)
    expected = resize.resize_part(image, size, BICUBIC, window, box)
    monkeypatch.setattr(resize, "NATIVE", None)
    np.testing.assert_array_equal(resize.resize_part(image, size, BICUBIC, window, box), expected)


def test_no_resize_at_all(resize):
    image = picture(90, 60, "noise")
    part = resize.resize_part(image, (90, 60), BICUBIC, (10, 5, 80, 50))
    np.testing.assert_array_equal(part, np.asarray(image)[5:50, 10:80])


def test_another_pillow(resize, monkeypatch, capfd):
    """A Pillow that rounds otherwise is detected when the library is loaded."""
    resize_as_it_is = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, *arguments: resize_as_it_is(self, *arguments).point(lambda level: level ^ 1)
    )
    assert resize.load(str(build.RESIZE.output)) is None
    assert "resize differently: Pillow does it, more slowly" in capfd.readouterr().err


def test_no_library(resize):
    assert resize.load(None) is None
    assert resize.load("") is None
    with pytest.raises(OSError, match=r"/none\.so"):
        resize.load("/none.so")


def test_no_memory_left(resize, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda path, load=ctypes.CDLL: Failing(load(path)))
    monkeypatch.setattr(resize, "agrees", lambda native: True)
    native = resize.load(str(build.RESIZE.output))
    with pytest.raises(MemoryError, match="no memory left to resize"):
        native(picture(9, 6, "noise"), (4, 3), BICUBIC, (0, 0, 4, 3), (0, 0, 9, 6))


class Failing(WithoutAvx2):
    def __init__(self, library):
        self.widefield_resize_part = lambda *arguments: 1


def test_every_access_lies_within(tmp_path):
    """The address sanitizer, over the sizes where a pair of taps ends with the picture."""
    program = tmp_path / "sanitized"
    (tmp_path / "main.cpp").write_text(SANITIZED)
    source = str(build.RESIZE.folder / build.RESIZE.sources[0])
    flags = [flag for flag in build.RESIZE.flags if flag != "-O3"]
    command = ["g++", *flags, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover", source]
    subprocess.run([*command, str(tmp_path / "main.cpp"), "-o", str(program)], check=True)
    subprocess.run([str(program)], check=True, timeout=120)


SANITIZED = """
#include <cstdint>
#include <memory>
extern "C" int widefield_has_avx2();
extern "C" int widefield_resize_part(
    const uint8_t*, int, int, const float*, const int*, int, const int*, int, uint8_t*);
int main() {
  for (int width = 1; width < 14; ++width)
    for (int to = 1; to < 14; ++to)
      for (int filter = 0; filter < 2; ++filter)
        for (int avx2 = 0; avx2 <= widefield_has_avx2(); ++avx2)
          for (int start = 0; start < to; ++start) {
            const int height = 15 - width, size[] = {to, 14 - to}, window[] = {start, 0, to, 14 - to};
            const float box[] = {0, 0, width - 0.5f, height * 1.0f};
            std::unique_ptr<uint8_t[]> pixels(new uint8_t[4 * width * height]());
            std::unique_ptr<uint8_t[]> out(new uint8_t[3 * (to - start) * (14 - to)]);
            const uint8_t* in = pixels.get();
            if (widefield_resize_part(in, width, height, box, size, filter, window, avx2, out.get())) return 1;
          }
}
"""


def test_pillows_memory_is_read_where_it_lies(resize, monkeypatch):
    image = picture(90, 60, "noise")
    shared = resize.share(image)
    assert ctypes.string_at(shared.address, 90 * 60 * 4) == image.tobytes("raw", "RGBX")
    monkeypatch.setattr(Image.Image, "tobytes", None)
    assert resize.NATIVE(image, (45, 30), BICUBIC, (0, 0, 45, 30), (0, 0, 90, 60)).shape == (30, 45, 3)


def test_a_picture_in_several_pieces_is_copied(resize):
    assert resize.share(picture(2048, 2048, "noise")) is not None
    assert resize.share(picture(2048, 2049, "noise")) is None


def test_a_pillow_that_shares_nothing(resize, monkeypatch):
    image = picture(90, 60, "noise")
    expected = resize.NATIVE(image, (45, 30), BICUBIC, (0, 0, 45, 30), (0, 0, 90, 60))
    monkeypatch.delattr(Image.Image, "__arrow_c_array__")
    assert resize.share(image) is None
    np.testing.assert_array_equal(resize.NATIVE(image, (45, 30), BICUBIC, (0, 0, 45, 30), (0, 0, 90, 60)), expected)
