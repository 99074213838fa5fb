"""The Python side of backend.cpp: loads a Python backend's model.py and passes it requests in the server's threads.

Each instance imports its own copy of model.py and of the modules beside it, so that instances share no variables and
versions share no modules. Modules beside model.py must be imported while it loads. The JSON config has the Python
backend's format.
"""

import ctypes
import importlib.util
import itertools
import os
import sys
import threading
import traceback
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

STRINGS = 13
# TRITONSERVER_DataType, whose order is that of pb_utils.TYPES
TYPES = {number: np.dtype(kind) for number, kind in enumerate(pb_utils.TYPES.values(), 1) if number != STRINGS}
NUMBERS = {dtype: number for number, dtype in TYPES.items()}


class Tensor(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_uint32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
    ]


class Request(ctypes.Structure):
    _fields_ = [("id", ctypes.c_char_p), ("inputs", ctypes.POINTER(Tensor)), ("input_count", ctypes.c_uint64)]


# CFUNCTYPE releases the GIL during the call; PYFUNCTYPE keeps it, for short calls.
Create = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
Destroy = ctypes.CFUNCTYPE(None, ctypes.c_int64)
Execute = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.POINTER(ctypes.POINTER(Request)), ctypes.c_uint64)
Answer = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.POINTER(Request), ctypes.POINTER(Tensor), ctypes.c_uint64)
Fail = ctypes.CFUNCTYPE(None, ctypes.POINTER(Request), ctypes.c_int32, ctypes.c_char_p)
Tell = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_char_p)
Log = ctypes.PYFUNCTYPE(None, ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32, ctypes.c_char_p)


class Bridge(ctypes.Structure):
    _fields_ = [
        ("create", Create),
        ("destroy", Destroy),
        ("execute", Execute),
        ("answer", Answer),
        ("fail", Fail),
        ("tell", Tell),
        ("log", Log),
    ]


class Models:
    """The model instances, by number."""

    def __init__(self, server: Bridge) -> None:
        self._server = server
        self._models: dict[int, Any] = {}  # number -> TritonPythonModel
        self._numbers = itertools.count(1)
        self._loading = threading.Lock()

    def create(self, folder: bytes, config: bytes, instance: bytes, text: int) -> int:
        repository, version = os.path.split(folder.decode())
        arguments = {  # as the Python backend has them, which calls the model's folder its repository
            "model_config": config.decode(),
            "model_instance_kind": "CPU",
            "model_instance_name": instance.decode(),
            "model_instance_device_id": "0",
            "model_repository": repository,
            "model_version": version,
            "model_name": os.path.basename(repository),
        }
        try:
            with self._loading:
                model = load(folder.decode())
            if hasattr(model, "initialize"):
                model.initialize(arguments)
        except BaseException as error:  # includes sys.exit() in model.py
            self._server.tell(text, f"{type(error).__name__}: {error}\n{traceback.format_exc()}".encode())
            return 0
        number = next(self._numbers)
        self._models[number] = model
        return number

    def destroy(self, number: int) -> None:
        model = self._models.pop(number)
        if hasattr(model, "finalize"):
            model.finalize()

    def execute(self, number: int, pointers: Any, count: int) -> None:
        waiting, requests = [], []
        for pointer in pointers[:count]:
            try:
                requests.append(read_request(pointer.contents))
                waiting.append(pointer)
            except Exception as error:
                self._server.fail(pointer, pb_utils.TritonError.INVALID_ARG, str(error).encode())
        try:
            responses = self._models[number].execute(requests) if requests else []
            if len(responses) != len(requests):
                raise ValueError(f"execute() returned {len(responses)} responses for {len(requests)} requests")
            for response in responses:
                self._send(waiting[0], response)
                del waiting[0]
        except Exception as error:
            for pointer in waiting:
                message = f"{type(error).__name__}: {error}"
                self._server.fail(pointer, pb_utils.TritonError.INTERNAL, message.encode())

    def _send(self, request: Any, response: pb_utils.InferenceResponse) -> None:
        error = response.error()
        if error is None:
            tensors = [as_tensor(output) for output in response.output_tensors()]
            failure = self._server.answer(request, (Tensor * len(tensors))(*tensors), len(tensors))
            error = None if failure is None else pb_utils.TritonError(failure.decode(errors="replace"))
        if error is not None:
            self._server.fail(request, error.code(), error.message().encode())


def load(folder: str) -> Any:
    """Import `folder`/model.py and return a new TritonPythonModel."""
    before = set(sys.modules)
    importlib.invalidate_caches()
    sys.path.insert(0, folder)
    try:
        spec = importlib.util.spec_from_file_location("model", os.path.join(folder, "model.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["model"] = module
        spec.loader.exec_module(module)
        return module.TritonPythonModel()
    finally:
        sys.path.remove(folder)
        for name in sys.modules.keys() - before | {"model"}:
            if os.path.dirname(getattr(sys.modules.get(name), "__file__", None) or "") == folder:
                del sys.modules[name]


def read_request(request: Request) -> pb_utils.InferenceRequest:
    """Convert the server's request. Raises `ValueError` if its sender made a mistake."""
    tensors = [request.inputs[i] for i in range(request.input_count)]
    inputs = [pb_utils.Tensor(tensor.name.decode(), as_array(tensor)) for tensor in tensors]
    return pb_utils.InferenceRequest(request.id.decode(errors="replace"), inputs)


def as_array(tensor: Tensor) -> np.ndarray:
    """Return a view of the tensor in the server's memory, or a copy if it holds strings. Raises `ValueError`."""
    shape = tensor.shape[: tensor.rank]
    memory = memoryview((ctypes.c_char * tensor.bytes).from_address(tensor.data) if tensor.bytes else b"").cast("B")
    if tensor.type == STRINGS:
        strings = split_strings(memory)
        array = np.empty(len(strings), np.object_)
        array[:] = strings
        return array.reshape(shape)
    if tensor.type not in TYPES:
        raise ValueError(f"input '{tensor.name.decode()}' has data type {tensor.type}, which numpy does not have")
    return np.frombuffer(memory, TYPES[tensor.type]).reshape(shape)


def split_strings(data: memoryview) -> list[bytes]:
    """Split a string tensor, in which a length of 4 bytes precedes each string. Raises `ValueError` if cut off."""
    strings = []
    begin = 0
    while begin < len(data):
        length = int.from_bytes(data[begin : begin + 4], "little")
        begin += 4
        if begin + length > len(data):
            raise ValueError(f"incomplete strings: {length} bytes expected from byte {begin} on, of {len(data)}")
        strings.append(bytes(data[begin : begin + length]))
        begin += length
    return strings


def as_tensor(output: pb_utils.Tensor) -> Tensor:
    """Return a view of `output`, valid as long as `output` exists. Raises `ValueError` for strings."""
    array = output.as_numpy()
    if array.dtype not in NUMBERS:
        raise ValueError(f"output '{output.name()}' is {array.dtype}: numbers and booleans alone can be answered here")
    kept = output._array = np.ascontiguousarray(array)
    shape = (ctypes.c_int64 * array.ndim)(*array.shape)
    return Tensor(output.name().encode(), NUMBERS[array.dtype], array.ndim, shape, kept.ctypes.data, kept.nbytes)


def connect(place: int) -> Bridge:
    """Fill in the library's `Bridge` at the address `place`; the returned object keeps its functions alive."""
    bridge = Bridge.from_address(place)
    models = Models(bridge)
    bridge.create, bridge.destroy, bridge.execute = (
        Create(models.create),
        Destroy(models.destroy),
        Execute(models.execute),
    )
    log = bridge.log
    pb_utils.Logger.write = lambda level, file, line, text: log(level, file.encode(), line, text.encode())
    return bridge
