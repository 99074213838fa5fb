"""Files of tiles by shape: the user's own, which the tuner writes, and the shipped tiles.json in this folder."""

import fcntl
import hashlib
import json
import os
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.depthwise_conv2d import grad_weight, pytorch, toeplitz

TABLE = Path(__file__).with_name("tiles.json")
NAMES = ("toeplitz", "taps", *pytorch.MEMORY_FORMATS)
Algorithm = toeplitz.Tile | grad_weight.GradWeightTile | str  # a tile, or one of NAMES


def cache_file() -> Path:
    return _cache_file(*map(os.environ.get, ("WIDEFIELD_TILES", "XDG_CACHE_HOME", "HOME")))


@cache
def _cache_file(tiles: str | None, cache_home: str | None, home: str | None) -> Path:
    """Return the path of the user's file, cached: every call needs it, and a small layer takes less than making it."""
    if tiles:
        return Path(tiles)
    measured_with = hashlib.sha256(triton.__version__.encode())  # after an upgrade its times are of other kernels
    for path in sorted(TABLE.parent.glob("*.py")):
        measured_with.update(path.read_bytes())
    folder = Path(cache_home or os.path.expanduser("~/.cache"), "widefield")  # a user may have no home
    return folder / f"tiles-{measured_with.hexdigest()[:12]}.json"


def key(operation: str, input: Tensor, kernel_size: tuple[int, ...], precision: str) -> str:
    """Return a call's key in the files, for example "toeplitz sm_90 bfloat16 64x128x56x56 31x31"."""
    major, minor = torch.cuda.get_device_capability(input.device)
    kind = str(input.dtype).removeprefix("torch.") + ("" if precision == "ieee" else f"-{precision}")
    shape = "x".join(str(size) for size in input.shape)
    return f"{operation} sm_{major}{minor} {kind} {shape} {kernel_size[0]}x{kernel_size[1]}"


class TilesError(RuntimeError):
    """A file of tiles cannot be used."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}: remove it, or name another file in WIDEFIELD_TILES")


@cache
def read(path: Path) -> dict[str, Any]:
    """Return a file's algorithms by key; empty if there is no file, or no access to its folder. Raises `TilesError`."""
    try:
        entries = json.loads(path.read_text()) if os.path.isfile(path) else {}  # Path.is_file raises without access
    except OSError as error:
        raise TilesError(path, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise TilesError(path, f"is damaged ({error})") from error
    if not isinstance(entries, dict):
        raise TilesError(path, f"holds a {type(entries).__name__} in place of tiles by shape")
    return entries


def algorithm_in(path: Path, name: str, kind: type) -> Algorithm:
    """Return the tile or the name that a file has for the shape `name`. Raises `TilesError`."""
    algorithm = read(path)[name]
    if algorithm in NAMES:
        return algorithm
    try:
        return kind(**algorithm)
    except TypeError as error:
        raise TilesError(path, f"has {algorithm!r} for {name!r}, which is not a tile of this version") from error


def remember(name: str, algorithm: Algorithm) -> None:
    """Add an entry to the user's file, which is replaced atomically, under a lock against other writers."""
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:  # not the file itself, which is replaced
        fcntl.flock(lock, fcntl.LOCK_EX)
        read.cache_clear()
        entries = read(path) | {name: algorithm if isinstance(algorithm, str) else asdict(algorithm)}
        draft = path.with_name(f".{path.name}.{os.getpid()}")  # the lock's holder is its only writer
        # Several users may share the file: its mode is left to the umask.
        draft.write_text(json.dumps(entries, indent=1, sort_keys=True))
        os.replace(draft, path)
        read.cache_clear()


def shipped_tile(name: str, kind: type) -> Any:
    """Return the shipped table's tile for the key `name`, as a `kind`, or None."""
    found = shipped(TABLE, name)
    return kind(**found) if found else None


@cache
def shipped(table: Path, name: str) -> dict[str, Any] | None:
    """Return the tile in `table` for the key `name`, else that of the next smaller batch, else None.

    A larger batch is more programs of the same kind. Tiles of bfloat16 serve float16, whose bytes and tensor-core
    instructions are the same.
    """

    def parts(key: str) -> tuple[int, list[str]]:
        *kind, shape, kernel = key.split()
        batch, _, image = shape.partition("x")
        return int(batch), ["bfloat16" if word == "float16" else word for word in (*kind, image, kernel)]

    most, layer = parts(name)
    tiles = {parts(key)[0]: tile for key, tile in read(table).items() if parts(key)[1] == layer}
    return tiles.get(max((batch for batch in tiles if batch <= most), default=0))
