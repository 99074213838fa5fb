import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import pytest

from benchmarks.served import load_transform
from server.backends import build

STEP = Path(__file__).parents[2] / "model_repository" / "preprocess" / "1"


class FakeTensor:
    def __init__(self, name, array):
        self.name, self.array = name, array

    def as_numpy(self):
        return self.array


class FakeRequest(dict):
    """Its tensors, by their names."""

    name = "order-1"

    def request_id(self):
        return self.name


class FakeError(Exception):
    INVALID_ARG, INTERNAL = "INVALID_ARG", "INTERNAL"

    def __init__(self, message, code="INTERNAL"):
        super().__init__(message)
        self.message, self.code = message, code


def fake_backend_utils() -> ModuleType:
    """A fake of the module that exists only in tritonserver's Python backend, with what preprocess uses of it."""
    module = ModuleType("triton_python_backend_utils")
    module.Tensor = FakeTensor
    module.TritonError = FakeError
    module.InferenceResponse = lambda output_tensors=None, error=None: SimpleNamespace(
        tensors=output_tensors or [], error=error
    )
    module.Request = FakeRequest
    module.Logger = SimpleNamespace(lines=[])
    module.Logger.log_warn = module.Logger.lines.append
    module.get_input_tensor_by_name = lambda request, name: request[name]
    return module


@pytest.fixture(scope="session")
def transform():
    """preprocess/1/evaluation_transform.py as a module, with the library that the server gives it."""
    build.build(build.RESIZE)
    return load_transform(STEP)


@pytest.fixture(scope="session")
def step(transform):
    """preprocess/1/model.py as a module, as the Python backend would load it."""
    spec = importlib.util.spec_from_file_location("preprocess_step", STEP / "model.py")
    module = importlib.util.module_from_spec(spec)
    with patch.dict(sys.modules, {"triton_python_backend_utils": fake_backend_utils()}):
        spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def priorities(step, monkeypatch):
    """The priorities that a step asks for; the tests' own process keeps its own."""
    asked = []
    monkeypatch.setattr(step.os, "getpriority", lambda *_: 0)
    monkeypatch.setattr(step.os, "setpriority", lambda *arguments: asked.append(arguments))
    return asked


@pytest.fixture
def settings(transform):
    return transform.Settings(image_size=32, resize_size=36, interpolation="bicubic")
