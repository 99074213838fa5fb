"""Which tile a shape gets: the user's own measurement, else the shipped table, else the rule.

WIDEFIELD_AUTOTUNE=1 measures every shape once, when it is first seen, and keeps the answers in $WIDEFIELD_TILES, else
in widefield/tiles.json of $XDG_CACHE_HOME or ~/.cache. tiles.json beside this file is the shipped table for sm_80 and
sm_90. Its entries are reasoned from machine code and byte counts: none has been measured.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.depthwise_conv2d import grad_weight, toeplitz

TABLE = Path(__file__).with_name("tiles.json")


def cache_file() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("WIDEFIELD_TILES") or folder / "widefield" / "tiles.json")


def key(operation: str, input: Tensor, kernel_size: tuple[int, ...], precision: str) -> str:
    major, minor = torch.cuda.get_device_capability(input.device)
    kind = str(input.dtype).removeprefix("torch.") + ("" if precision == "ieee" else f"-{precision}")
    shape = "x".join(str(size) for size in input.shape)
    return f"{operation} sm_{major}{minor} {kind} {shape} {kernel_size[0]}x{kernel_size[1]}"


@cache
def read(path: Path) -> dict[str, Any]:
    """The tiles of a file by key; empty where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def remember(name: str, tile: Any) -> None:
    """Written whole and moved in place: another process sees the old file or the new one."""
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    tiles = (json.loads(path.read_text()) if path.is_file() else {}) | {name: asdict(tile)}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(tiles, file, indent=1, sort_keys=True)
    os.replace(file.name, path)
    read.cache_clear()


def find(name: str, kind: type, options: Callable[[], Iterator[Any]], launch: Callable[[Any], None]) -> Any:
    """The tile to launch with; None leaves it to the rule."""
    for path in (cache_file(), TABLE):
        if name in read(path):
            return kind(**read(path)[name])
    if os.environ.get("WIDEFIELD_AUTOTUNE") != "1" or torch.cuda.is_current_stream_capturing():
        return None
    best = fastest(options(), launch)
    remember(name, best)
    return best


def fastest(options: Iterator[Any], launch: Callable[[Any], None]) -> Any:
    """By the median time; a tile that the device has no room for is passed over."""
    times = {}
    for tile in options:
        try:
            times[tile] = triton.testing.do_bench(lambda tile=tile: launch(tile), return_mode="median")
        except triton.runtime.errors.OutOfResources:
            continue
    return min(times, key=lambda tile: times[tile])


def toeplitz_tile(
    input: Tensor, weight: Tensor, bias: Tensor | None, output: Tensor, activation: str, precision: str
) -> Any:
    def options() -> Iterator[toeplitz.Tile]:
        batch, _, height, width = input.shape
        rule = toeplitz.choose_tile(batch, height, width, weight.shape[3], input.element_size())
        for block_m in (16, 32, 64, 128):
            for block_k in (32, 64, 128):
                for stages in (2, 3, 4):
                    warps = toeplitz.warps_for(block_m * rule.rows * rule.columns, input.element_size())
                    yield replace(rule, block_m=block_m, block_k=block_k, warps=warps, stages=stages)

    return find(
        key("toeplitz", input, tuple(weight.shape[2:]), precision),
        toeplitz.Tile,
        options,
        lambda tile: toeplitz.launch(input, weight, bias, output, activation, precision, tile=tile),
    )


def grad_weight_tile(grad: Tensor, input: Tensor, result: Tensor, precision: str) -> Any:
    height, width = input.shape[2:]
    kernel_size = tuple(result.shape[2:])

    def options() -> Iterator[grad_weight.GradWeightTile]:
        ranked = sorted(
            grad_weight.candidates(height, width, kernel_size[0], kernel_size[1], input.element_size()),
            key=lambda option: option[0],
        )
        for _, tile in ranked[:8]:
            for stages in (2, 3, 4):
                for warps in (4, 8):
                    yield replace(tile, stages=stages, warps=warps)

    return find(
        key("grad_weight", input, kernel_size, precision),
        grad_weight.GradWeightTile,
        options,
        lambda tile: grad_weight.launch(grad, input, result, precision, tile=tile),
    )
