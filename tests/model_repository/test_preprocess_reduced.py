"""Large JPEGs are decoded at reduced size: how far that moves a pixel, and what it leaves alone."""

import io
import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images


def detailed(size, photo=0, **options):
    """A photograph enlarged, with its own detail laid over it at its own scale: nothing in it is smooth."""
    source = load_sample_images().images[photo]
    smooth = Image.fromarray(source).resize((80, 53)).resize((640, 427), Image.Resampling.BICUBIC)
    detail = np.asarray(source).astype(np.float32) - np.asarray(smooth)
    repeats = (-(-size[1] // 427), -(-size[0] // 640), 1)
    picture = np.asarray(Image.fromarray(source).resize(size, Image.Resampling.LANCZOS))
    picture = picture + 0.5 * np.tile(detail, repeats)[: size[1], : size[0]]
    buffer = io.BytesIO()
    Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


@pytest.fixture
def reduced(transform):
    return transform.Settings(image_size=56, resize_size=64, interpolation="bicubic")


def decoded_size(transform, monkeypatch, data, settings):
    """Return the size at which the picture was decoded."""
    sizes = []
    convert = transform.to_rgb
    monkeypatch.setattr(transform, "to_rgb", lambda image: sizes.append(image.size) or convert(image))
    transform.preprocess(data, settings)
    return sizes[0]


@pytest.mark.parametrize("photo", [0, 1])
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((288, 385), (144, 193)),  # at the margin; an odd side: the last half pixel is no part of the picture
        ((425, 358), (213, 179)),
        ((1008, 756), (252, 189)),
        ((1153, 1501), (145, 188)),
    ],
)
def test_close_to_full_decoding(transform, reduced, monkeypatch, photo, size, expected):
    data = detailed(size, photo)
    full = transform.preprocess(data, replace(reduced, reduced_decoding=False)).astype(int)
    difference = np.abs(transform.preprocess(data, reduced) - full)
    assert 0 < difference.mean() < 1
    assert difference.max() <= 16
    assert decoded_size(transform, monkeypatch, data, reduced) == expected


def test_a_jpeg_with_a_second_picture_is_a_jpeg(transform, reduced, monkeypatch):
    """As phones write them; Pillow calls the format MPO."""
    picture = Image.open(io.BytesIO(detailed((1008, 756)))).convert("RGB")
    alone, first = io.BytesIO(), io.BytesIO()
    picture.save(alone, "JPEG", quality=90)
    picture.save(first, "MPO", quality=90, save_all=True, append_images=[Image.new("RGB", (90, 60))])
    assert Image.open(first).format == "MPO"
    assert decoded_size(transform, monkeypatch, first.getvalue(), reduced) == (252, 189)
    expected = transform.preprocess(alone.getvalue(), reduced)
    np.testing.assert_array_equal(transform.preprocess(first.getvalue(), reduced), expected)


@pytest.mark.parametrize("size", [(287, 287), (240, 160), (56, 1000)])
def test_smaller_images_are_decoded_in_full(transform, reduced, monkeypatch, size):
    data = detailed(size)
    assert decoded_size(transform, monkeypatch, data, reduced) == size
    full = transform.preprocess(data, replace(reduced, reduced_decoding=False))
    np.testing.assert_array_equal(transform.preprocess(data, reduced), full)


def test_it_can_be_turned_off(transform, reduced, monkeypatch):
    full = replace(reduced, reduced_decoding=False)
    assert decoded_size(transform, monkeypatch, detailed((576, 384)), full) == (576, 384)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_other_formats_are_decoded_in_full(transform, reduced, monkeypatch, kind):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(detailed((325, 300)))).save(buffer, kind)
    assert decoded_size(transform, monkeypatch, buffer.getvalue(), reduced) == (325, 300)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_orientation_and_modes(transform, reduced, orientation, mode):
    """Odd sides: a box laid on the wrong side of a turned picture would show."""
    exif = Image.Exif()
    exif[transform.EXIF_ORIENTATION] = orientation
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(detailed((325, 291)))).convert(mode)
    picture.save(buffer, "JPEG", quality=92, exif=exif, progressive=orientation % 2 == 0)
    full = transform.preprocess(buffer.getvalue(), replace(reduced, reduced_decoding=False)).astype(int)
    assert 0 < np.abs(transform.preprocess(buffer.getvalue(), reduced) - full).mean() < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_library_resizes_turned_ones_too(transform, reduced, monkeypatch, orientation):
    """Pillow's pixels, without Pillow's resize."""
    exif = Image.Exif()
    exif[transform.EXIF_ORIENTATION] = orientation
    data = detailed((325, 291), exif=exif)
    with monkeypatch.context() as alone:
        alone.setitem(transform.resize_part.__globals__, "NATIVE", None)
        expected = transform.preprocess(data, reduced)
    monkeypatch.setattr(Image.Image, "resize", None)
    np.testing.assert_array_equal(transform.preprocess(data, reduced), expected)


def test_truncated(transform, reduced):
    data = detailed((325, 291))
    with pytest.raises(transform.ImageError, match="truncated or damaged"):
        transform.preprocess(data[: len(data) // 2], reduced)


def model_of(step, monkeypatch, cores, instances):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(cores)))
    values = {"image_size": "8", "resize_size": "10", "interpolation": "bicubic"}
    parameters = {key: {"string_value": value} for key, value in values.items()}
    config = {"parameters": parameters, "output": [{"name": "pixels"}], "instance_group": [{"count": instances}]}
    model = step.TritonPythonModel()
    model.initialize({"model_config": json.dumps(config)})
    return model


def request_of(step, *images):
    images = np.array([[image] for image in images], dtype=np.object_)
    return step.pb_utils.Request(image=step.pb_utils.Tensor("image", images))


def colour(name):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 12), name).save(buffer, "PNG")
    return buffer.getvalue()


def test_instances_share_the_cores(step, transform, monkeypatch, priorities):
    """Two images must be in hand at once to pass the barrier; the order of the answers is that of the requests."""
    model = model_of(step, monkeypatch, cores=6, instances=2)
    barrier = threading.Barrier(3, timeout=20)
    decode = transform.decode
    monkeypatch.setattr(transform, "decode", lambda *arguments: (barrier.wait(), decode(*arguments))[1])
    responses = model.execute([request_of(step, colour("red"), colour("lime")), request_of(step, colour("blue"))])
    model.finalize()
    assert [response.error for response in responses] == [None, None]
    first, second = (response.tensors[0].array for response in responses)
    assert first[:, 0, 0].tolist() == [[255, 0, 0], [0, 255, 0]]
    assert second[:, 0, 0].tolist() == [[0, 0, 255]]
    assert len(priorities) == 1 + len(model.pool._threads) == 4  # the three that decode step back too
    assert not any(thread.is_alive() for thread in model.pool._threads)


def test_no_threads_where_instances_take_every_core(step, monkeypatch):
    assert model_of(step, monkeypatch, cores=2, instances=2).pool is None
    assert model_of(step, monkeypatch, cores=1, instances=2).pool is None


def test_bad_images_among_threads(step, monkeypatch):
    model = model_of(step, monkeypatch, cores=4, instances=1)
    good, bad, none = request_of(step, colour("red")), request_of(step, colour("red"), b"text"), step.pb_utils.Request()
    responses = model.execute([bad, none, good])
    model.finalize()
    assert responses[0].error.message.startswith("image 1 of 2: not a JPEG")
    assert "KeyError" in responses[1].error.message
    assert responses[2].tensors[0].array[0, 0, 0].tolist() == [255, 0, 0]


def test_no_memory_left_is_not_the_senders_mistake(step, transform, monkeypatch):
    """The request that met it fails as the server's error, those behind it in the batch are answered."""
    model = model_of(step, monkeypatch, cores=4, instances=1)
    to_rgb = transform.to_rgb

    def scarce(image):
        if image.getpixel((0, 0)) == (255, 0, 0):
            raise MemoryError
        return to_rgb(image)

    monkeypatch.setattr(transform, "to_rgb", scarce)
    red, blue = request_of(step, colour("red"), colour("lime")), request_of(step, colour("blue"))
    failed, answered = model.execute([red, blue])
    model.finalize()
    assert failed.error.code == "INTERNAL"
    assert failed.error.message.startswith("preprocess failed: MemoryError")
    assert answered.tensors[0].array[0, 0, 0].tolist() == [0, 0, 255]
