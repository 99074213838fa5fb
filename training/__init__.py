"""Train and evaluate the models of `models` on folders of images."""

from importlib.util import find_spec

_needed = ("torch", "torchvision", "timm", "safetensors", "PIL", "tyro", "scipy", "sklearn")
_missing = [name for name in _needed if find_spec(name) is None]
if _missing:  # with this name `python -m` prints one line, no traceback
    raise ImportError(f"training needs {', '.join(_missing)}: pip install '.[train]' brings all of it", name=__name__)
try:
    import kernels  # noqa: F401
except RuntimeError as error:  # a native library that does not load
    raise ImportError(str(error), name=__name__) from error
