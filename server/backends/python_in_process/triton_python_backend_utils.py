"""The names and types of tritonserver's Python backend that a model.py on the CPU imports.

Left out: outputs of strings, several responses to a request, requests to other models, `auto_complete_config`, what a
request tells beside its id and inputs, and tensors that are not numpy's.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Log = Callable[[int, str, int, str], None]  # level, file, line, text
TYPES = {
    "TYPE_BOOL": np.bool_,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}


class TritonModelException(Exception):  # noqa: N818 - the Python backend's name
    """An error that a model raises itself."""


class TritonError:
    """The reason why a request failed; the codes are those of TRITONSERVER_Error."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message = str(message)
        self._code = code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name = name
        self._array = array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        """Return the array; strings are bytes objects. The array of a request is valid only while `execute` runs."""
        return self._array


class InferenceRequest:
    def __init__(self, request_id: str, inputs: Sequence[Tensor]) -> None:
        self._request_id = request_id
        self._inputs = inputs

    def request_id(self) -> str:
        return self._request_id

    def inputs(self) -> Sequence[Tensor]:
        return self._inputs


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._output_tensors = output_tensors
        self._error = error

    def output_tensors(self) -> Sequence[Tensor]:
        return self._output_tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class Logger:
    """Writes to the server's log, with the caller's file and line."""

    write: Log | None = None  # set by bridge.connect

    @classmethod
    def _log(cls, level: int, message: str) -> None:
        caller: Any = inspect.currentframe().f_back.f_back  # type: ignore[union-attr]
        if cls.write is not None:
            cls.write(level, caller.f_code.co_filename, caller.f_lineno, message)

    @classmethod
    def log_info(cls, message: str) -> None:
        cls._log(0, message)

    @classmethod
    def log_warn(cls, message: str) -> None:
        cls._log(1, message)

    @classmethod
    def log_error(cls, message: str) -> None:
        cls._log(2, message)


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def get_input_config_by_name(model_config: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((each for each in model_config.get("input", ()) if each["name"] == name), None)


def get_output_config_by_name(model_config: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((each for each in model_config.get("output", ()) if each["name"] == name), None)


def triton_string_to_numpy(triton_type_string: str) -> type:
    return TYPES[triton_type_string]
