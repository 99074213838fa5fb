"""The Python backend's side: each request gets its own answer or its own error."""

import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

PARAMETERS = {"image_size": "8", "resize_size": "10", "interpolation": "bicubic"}


def encode(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 12), colour).save(buffer, "PNG")
    return buffer.getvalue()


def config(**parameters):
    values = {key: {"string_value": value} for key, value in parameters.items()}
    return {"parameters": values, "output": [{"name": "pixels"}]}


@pytest.fixture
def model(step):
    model = step.TritonPythonModel()
    model.initialize({"model_config": json.dumps(config(**PARAMETERS))})
    return model


def test_the_crop_goes_to_who_has_an_output_for_it(step, request_of):
    model = step.TritonPythonModel()
    outputs = [{"name": name} for name in ("pixels", "crop")]
    model.initialize({"model_config": json.dumps(config(**PARAMETERS) | {"output": outputs})})
    (answer,) = model.execute([request_of(encode("red"), encode("blue"))])
    pixels, crop = answer.tensors
    assert (pixels.name, pixels.array.shape) == ("pixels", (2, 8, 8, 3))
    assert crop.name == "crop"
    np.testing.assert_allclose(crop.array, [[0.1, 0.1, 0.9, 0.9]] * 2)


@pytest.fixture
def request_of(step):
    """Encoded images -> a request as the backend hands it over: a [B,1] tensor of bytes."""
    tensor = step.pb_utils.Tensor

    def build(*images):
        images = np.array([[image] for image in images], dtype=np.object_)
        return step.pb_utils.Request(image=tensor("image", images))

    return build


def test_what_is_decoded_already_goes_first(step, model, priorities):
    """The thread that executes steps back, which may not be the one that has initialized."""
    assert priorities == []
    model.execute([])
    model.execute([])
    assert priorities == [(step.os.PRIO_PROCESS, 0, 13)]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(model.execute, []).result()
    assert priorities == [(step.os.PRIO_PROCESS, 0, 13)] * 2


def test_a_server_that_yields_more_itself_is_not_put_before_others(step, priorities, monkeypatch):
    """Nobody but root may."""
    monkeypatch.setattr(step.os, "getpriority", lambda *_: 15)
    step.step_back()
    assert priorities == [(step.os.PRIO_PROCESS, 0, 15)]


def test_batch(model, request_of):
    (response,) = model.execute([request_of(encode("red"), encode("blue"))])
    assert response.error is None
    (pixels,) = response.tensors
    assert pixels.name == "pixels"
    assert pixels.array.shape == (2, 8, 8, 3)
    assert pixels.array.dtype == np.uint8
    assert pixels.array[:, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]


def test_a_bad_request_leaves_the_others(model, request_of):
    responses = model.execute([request_of(encode("red")), request_of(b"text"), request_of(encode("lime"))])
    assert [response.error is None for response in responses] == [True, False, True]
    assert responses[1].error.code == "INVALID_ARG"
    assert responses[1].error.message.startswith("not a JPEG, PNG")
    assert responses[2].tensors[0].array[0, 0, 0].tolist() == [0, 255, 0]


def test_several_images_name_the_bad_one(model, request_of):
    (response,) = model.execute([request_of(encode("red"), encode("red"), b"")])
    assert response.error.message.startswith("image 2 of 3: the image is empty")


def test_a_long_reason_is_a_short_line_in_the_log(step, model, request_of, monkeypatch):
    def fails(data, settings):
        raise RuntimeError("?" * 9999)

    monkeypatch.setattr(step, "prepare", fails)
    step.pb_utils.Logger.lines.clear()
    (response,) = model.execute([request_of(encode("red"))])
    assert response.error.message.startswith("preprocess failed: RuntimeError: ???")
    (line,) = step.pb_utils.Logger.lines
    assert len(line) < 700


def test_failures_are_logged_with_the_requests_id(step, model, request_of, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(step.time, "monotonic", lambda: clock[0])
    lines = step.pb_utils.Logger.lines
    lines.clear()
    model.execute([request_of(encode("red")), request_of(b"text")])
    (line,) = lines
    assert line.startswith("[request id: order-1] not a JPEG, PNG")
    model.execute([request_of(b"text")] * 50)
    assert len(lines) == step.LINES_A_SECOND
    clock[0] += 1
    long = request_of(b"text")
    long.name = "7" * 1_000_000
    model.execute([long])
    assert len(lines) == step.LINES_A_SECOND + 1
    assert len(lines[-1]) < 700


def test_an_error_of_ours_is_not_the_senders(step, model, request_of):
    responses = model.execute([step.pb_utils.Request(), request_of(encode("red"))])
    assert responses[0].error.code == "INTERNAL"
    assert "KeyError" in responses[0].error.message
    assert responses[1].error is None


def test_settings_are_read(step):
    read = step.read_settings(config(**PARAMETERS, max_file_bytes="7", max_pixels="9", reduced_decoding="false"))
    assert read == step.Settings(8, 10, "bicubic", 7, 9, False)
    read = step.read_settings(config(**PARAMETERS, crop_mode="border", fill="124,116,104"))
    assert read == step.Settings(8, 10, "bicubic", crop_mode="border", fill=(124, 116, 104))
    assert step.read_settings(config(**PARAMETERS)).reduced_decoding
    assert step.read_settings(config(**PARAMETERS)).max_file_bytes == 20 * 1024 * 1024


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": "big"}, 'image_size is "big"'),
        ({"max_pixels": "0"}, "max_pixels is 0"),
        ({"reduced_decoding": "no"}, 'reduced_decoding is "no": write true or false'),
        ({"interpolation": "nearest"}, 'interpolation is "nearest": choose bicubic or bilinear'),
        ({"crop_mode": "middle"}, 'crop_mode is "middle": choose center or squash or border'),
        ({"fill": "grey"}, 'fill is "grey": write three levels'),
        ({"fill": "0,0,256"}, "from 0 to 255"),
        ({"resize_size": None}, "missing from config.pbtxt: resize_size"),
    ],
)
def test_wrong_settings(step, changes, message):
    parameters = {key: value for key, value in {**PARAMETERS, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        step.read_settings(config(**parameters))
