"""Export a checkpoint as TorchScript or ONNX to a model repository, and check that it equals the eager model."""

from importlib.util import find_spec

_missing = [name for name in ("torch", "safetensors", "PIL") if find_spec(name) is None]
if _missing:
    raise ImportError(f"export needs {', '.join(_missing)}: pip install '.[build]' brings all of it", name=__name__)
