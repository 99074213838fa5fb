"""Read the state dict in a weights file, as trainers of many libraries write it; no code in the file is ever run."""

import argparse
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

ENTRIES = ("model", "state_dict", "model_state_dict")  # the first one present is used
AVERAGES = ("model_ema", "state_dict_ema")
# What DistributedDataParallel, torch.compile, Lightning and OpenMMLab put before the names of the network's own.
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
LONGEST_HEADER = 100_000_000  # bytes, safetensors' own limit
MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # of NumPy 1 and 2
NUMPY = ("numpy.dtype", "numpy.ndarray", *(f"{m}.{name}" for m in MULTIARRAY for name in ("scalar", "_reconstruct")))
PATHS = [f"{m}.{name}" for m in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath", "PurePosixPath")]
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
NOT_ALLOWED = re.compile(r"GLOBAL (\S+) (?:was not|whose module)")


class WeightsError(ValueError):
    """A checkpoint that does not fit or cannot be read; the message names the file and the first offending key."""


class _Ignored:
    """Replaces NumPy's numbers and arrays, and paths, such as a best accuracy and its log: they are no weights."""

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def read_state(path: Path, expected: Collection[str], prefer_average: bool = False) -> dict[str, Tensor]:
    """The state dict in `path`, without the wrappers that the model's keys, `expected`, do not have.

    `prefer_average`: of a file with plain and averaged weights (EMA), return the averaged ones.

    Raises `FileNotFoundError`, and `WeightsError` for what cannot be read or holds no state dict.
    """
    state = _without_prefixes(_state_dict(_read(path), path, prefer_average), expected)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise WeightsError(f"{path}: {name!r} is a {type(value).__name__}: a state dict holds tensors only")
    return state


def first_line(error: BaseException) -> str:
    """Return the message without the stack that PyTorch's C++ puts after it."""
    return ESCAPES.sub("", str(error) or type(error).__name__).splitlines()[0]


def _read(path: Path) -> Any:
    """Load a file by its content: the same suffix, such as .bin or .ckpt, is used for files of every kind."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        with path.open("rb") as file:
            begin = file.read(64)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror})") from error
    if not begin:
        raise WeightsError(f"{path} cannot be read: it is empty")
    if begin[8:9] == b"{" and int.from_bytes(begin[:8], "little") <= LONGEST_HEADER:
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{path} cannot be read ({error}): it is truncated or damaged") from error
    if begin.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive, or a pickle as PyTorch wrote them before 1.6
        return _unpickled(path)
    hint = ""
    if begin.lstrip().startswith(b"<"):
        hint = "; it looks like a web page, so download the file that the page offers"
    elif begin.startswith(b"version https://git-lfs"):
        hint = "; it is a pointer of Git LFS, so fetch the file with git lfs pull"
    raise WeightsError(
        f"{path} is not a checkpoint: it begins with {begin[:16]!r}, unlike files of safetensors or torch.save{hint}"
    )


def _unpickled(path: Path) -> Any:
    ignored = [(_Ignored, name) for name in (*NUMPY, *PATHS)]
    try:
        with torch.serialization.safe_globals([argparse.Namespace, *ignored]):  # trainers keep their arguments in it
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        message = ESCAPES.sub("", str(error))
        if found := NOT_ALLOWED.search(message):
            raise WeightsError(
                f"{path} cannot be read as tensors alone: it holds {found[1]}, which could run code; "
                "where you trust it, save its state dict as .safetensors"
            ) from error
        detail = message.partition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
        reason = f" ({detail})" if detail else ""
        raise WeightsError(f"{path} cannot be read{reason}: it is damaged, or was not written by torch.save") from error
    except Exception as error:  # a damaged pickle raises anything
        if "TorchScript" in str(error):
            raise WeightsError(f"{path} cannot be read: it is a TorchScript program, not a state dict") from error
        raise WeightsError(f"{path} cannot be read ({first_line(error)}): it is truncated or damaged") from error


def _state_dict(content: Any, path: Path, prefer_average: bool) -> dict[str, Any]:
    """Return the state dict inside a trainer's checkpoint, or all of `content`."""
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}: a state dict is needed")
    for name in (*AVERAGES, *ENTRIES) if prefer_average else (*ENTRIES, *AVERAGES):
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    return {str(name): value for name, value in content.items()}


def _without_prefixes(state: dict[str, Any], expected: Collection[str]) -> dict[str, Any]:
    """Remove a prefix that the model lacks, if all keys have it, or all keys that would fit the model.

    In the latter case the other keys are left out, such as those of a loss or a metric in a trainer's module.
    """
    others = [prefix for prefix in PREFIXES if not any(name.startswith(prefix) for name in expected)]
    found = any(name in expected for name in state)
    for prefix in others:
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        fits = not found and any(_bare(name, others) in expected for name in inner)
        if inner and (len(inner) == len(state) or fits):
            return _without_prefixes(inner, expected)
    return state


def _bare(name: str, prefixes: list[str]) -> str:
    while prefix := next((prefix for prefix in prefixes if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name
