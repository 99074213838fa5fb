"""Python's side of the models in tritonserver's own process, without the server: tensors, loads, who is told what."""

import ctypes
import importlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

NUMBERS = [
    np.bool_,
    *(np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)),
    np.float16,
    np.float32,
    np.float64,
]


@pytest.fixture
def bridge(monkeypatch):
    """bridge.py as a library's Python has it."""
    folder = Path(__file__).parents[2] / "server" / "backends" / "python_in_process"
    monkeypatch.syspath_prepend(folder)
    for name in ("bridge", "triton_python_backend_utils"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("bridge")
    for name in ("bridge", "triton_python_backend_utils"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_numbers_go_through_as_they_are(bridge, dtype):
    array = np.arange(12).astype(dtype).reshape(3, 4)
    output = bridge.pb_utils.Tensor("x", array[:, ::2])
    out = bridge.as_tensor(output)
    np.testing.assert_array_equal(bridge.as_array(out), array[:, ::2])
    assert bridge.as_array(out).dtype == array.dtype
    assert out.bytes == 6 * array.itemsize


def test_no_elements(bridge):
    output = bridge.pb_utils.Tensor("x", np.empty((0, 3), np.float32))
    out = bridge.as_tensor(output)
    assert bridge.as_array(out).shape == (0, 3)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\0\0\0\0", [b""]),
        (b"\2\0\0\0ab\1\0\0\0c", [b"ab", b"c"]),
        (b"\3\0\0\0ab", "incomplete strings: 3 bytes expected from byte 4 on, of 6"),
        (b"\1\0", "incomplete strings: 1 bytes expected from byte 4 on, of 2"),
    ],
)
def test_strings(bridge, data, expected):
    if isinstance(expected, list):
        assert bridge.split_strings(memoryview(data)) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            bridge.split_strings(memoryview(data))


def test_each_load_is_a_module_of_its_own(bridge, tmp_path):
    """Two versions with modules of the same names; nothing of them stays in Python's table."""
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "neighbour.py").write_text(f"VALUE = {version}\n")
        (tmp_path / version / "model.py").write_text(
            "import neighbour\nclass TritonPythonModel:\n    value = neighbour.VALUE\n"
        )
    before = set(sys.modules), list(sys.path)
    models = [bridge.load(str(tmp_path / version)) for version in ("1", "2", "1")]
    assert [model.value for model in models] == [1, 2, 1]
    assert type(models[0]) is not type(models[2])
    assert (set(sys.modules), sys.path) == before
    shutil.rmtree(tmp_path / "2")
    with pytest.raises(FileNotFoundError):
        bridge.load(str(tmp_path / "2"))
    assert (set(sys.modules), sys.path) == before


def test_the_life_of_an_instance(bridge, tmp_path):
    """Created with the Python backend's arguments, finalized once; a name for what it lacks."""
    folder = tmp_path / "sleepy" / "3"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(
        "said = []\nclass TritonPythonModel:\n"
        "    def initialize(self, args):\n        said.append(args)\n        self.said = said\n"
        "    def finalize(self):\n        said.append('end')\n"
    )
    told = []
    server = bridge.Bridge(tell=bridge.Tell(lambda text, message: told.append(message)))
    models = bridge.Models(server)
    number = models.create(str(folder).encode(), b"{}", b"model_0_0", 0)
    said = models._models[number].said
    models.destroy(number)
    arguments = {
        "model_config": "{}",
        "model_instance_kind": "CPU",
        "model_instance_name": "model_0_0",
        "model_instance_device_id": "0",
        "model_repository": str(tmp_path / "sleepy"),
        "model_version": "3",
        "model_name": "sleepy",
    }
    assert said == [arguments, "end"]
    assert models._models == {}
    for script, reason in (("pass", b"AttributeError: "), ("raise SystemExit('no licence')", b"SystemExit: no lic")):
        (folder / "model.py").write_text(script)
        assert models.create(str(folder).encode(), b"{}", b"model_0_0", ctypes.c_void_p(0)) == 0
        assert told.pop().startswith(reason)


def test_a_model_finds_its_tensors_types(bridge):
    """As the examples of the Python backend do."""
    config = {"input": [{"name": "x", "data_type": "TYPE_STRING"}], "output": [{"name": "y", "data_type": "TYPE_FP16"}]}
    utils = bridge.pb_utils
    for get, name, dtype in (
        (utils.get_input_config_by_name, "x", np.object_),
        (utils.get_output_config_by_name, "y", np.float16),
    ):
        assert utils.triton_string_to_numpy(get(config, name)["data_type"]) is dtype
        assert get(config, "z") is None is get({}, name)


@pytest.fixture
def execute(bridge):
    """execute(model's function, strings of each request) -> what each was told, an answer or a code and its reason."""

    def run(function, *strings):
        told, kept = {}, []
        for data in strings:
            memory = ctypes.create_string_buffer(data, len(data))
            shape = (ctypes.c_int64 * 1)(1)
            image = bridge.Tensor(b"image", bridge.STRINGS, 1, shape, ctypes.addressof(memory), len(data))
            kept.append((ctypes.pointer(bridge.Request(b"", ctypes.pointer(image), 1)), memory))
        pointers = [pointer for pointer, _ in kept]

        def answer(pointer, tensors, count):
            told.setdefault(pointers.index(pointer), []).append(bridge.as_array(tensors[0]).tolist())
            return b"no room" if told[pointers.index(pointer)] == [[9]] else None

        def fail(pointer, code, message):
            told.setdefault(pointers.index(pointer), []).append((code, message.decode()))

        models = bridge.Models(SimpleNamespace(answer=answer, fail=fail))
        models._models[1] = SimpleNamespace(execute=function)
        models.execute(1, pointers, len(pointers))
        return [told[number] for number in range(len(pointers))]

    return run


def test_each_of_a_batch_is_told_its_own_and_once(bridge, execute):
    def respond(request):
        (word,) = request.inputs()[0].as_numpy()
        if word == b"?":
            return pb_utils.InferenceResponse(error=pb_utils.TritonError("not this", pb_utils.TritonError.UNAVAILABLE))
        return pb_utils.InferenceResponse([pb_utils.Tensor("slept", np.array([int(word)]))])

    pb_utils = bridge.pb_utils
    one, two, bad, refused, nine = (b"\1\0\0\0" + word for word in (b"1", b"2", b"", b"?", b"9"))
    assert execute(lambda requests: [respond(each) for each in requests], one, bad, two, refused, nine) == [
        [[1]],
        [(pb_utils.TritonError.INVALID_ARG, "incomplete strings: 1 bytes expected from byte 4 on, of 4")],
        [[2]],
        [(pb_utils.TritonError.UNAVAILABLE, "not this")],
        [[9], (pb_utils.TritonError.INTERNAL, "no room")],  # of the answer, by the server
    ]
    (first, (failed,), (last,)) = execute(lambda requests: [respond(requests[0]), None, None], one, two, nine)
    assert first == [[1]]
    assert failed[0] == last[0] == pb_utils.TritonError.INTERNAL
