"""Which way a shape goes: the user's own measurement, else the shipped table, else the rule.

WIDEFIELD_AUTOTUNE=1 measures every shape once, when it is first seen, ours and PyTorch's convolution in both memory
formats, and keeps the answers in $WIDEFIELD_TILES, else in widefield/tiles.json of $XDG_CACHE_HOME or ~/.cache: a tile
or the word for another way (dispatch.py). tiles.json beside this file is the shipped table for sm_80 and sm_90. Its
entries are reasoned from machine code and byte counts: none has been measured.
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

from kernels.depthwise_conv2d import grad_weight, pytorch, toeplitz

TABLE = Path(__file__).with_name("tiles.json")
Way = Any  # a tile, or a word of dispatch.py
Run = Callable[[Way], Any]


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
    """The ways of a file by key; empty where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


def remember(name: str, way: Way) -> None:
    """Written whole and moved in place: another process sees the old file or the new one."""
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    ways = json.loads(path.read_text()) if path.is_file() else {}
    ways[name] = way if isinstance(way, str) else asdict(way)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(ways, file, indent=1, sort_keys=True)
    os.replace(file.name, path)
    read.cache_clear()


def find(plain: str, details: str, kind: type, options: Callable[[], Iterator[Way]], run: Run) -> Way | None:
    """The way to go; None leaves it to the rule. A tile found for `plain` serves what differs from it in `details`."""
    own, name = read(cache_file()), plain + details
    if name not in own and os.environ.get("WIDEFIELD_AUTOTUNE") == "1" and not torch.cuda.is_current_stream_capturing():
        remember(name, fastest(options(), run))
        own = read(cache_file())
    if name in own:
        return own[name] if isinstance(own[name], str) else kind(**own[name])
    for table in (own, read(TABLE)):
        if isinstance(table.get(plain), dict):
            return kind(**table[plain])
    return None


def fastest(options: Iterator[Way], run: Run) -> Way:
    """By the median time; what the device has no room for, or cuDNN no algorithm, is passed over."""
    times: dict[Way, float] = {}
    failure: Exception | None = None
    for way in options:
        try:
            times[way] = triton.testing.do_bench(lambda way=way: run(way), return_mode="median")
        except (triton.errors.TritonError, RuntimeError) as error:
            failure = error
    if not times:
        raise RuntimeError(f"no way to compute this shape could be measured; the last one's failure: {failure}")
    return min(times, key=lambda way: times[way])


def forward_way(
    input: Tensor, kernel_size: tuple[int, ...], activation: str, precision: str, kernel: str, run: Run
) -> Way | None:
    """`kernel`: the rule's choice, "toeplitz" or "taps"; where few taps make it the latter, tiles are the rule's."""

    def options() -> Iterator[Way]:
        yield kernel
        yield from pytorch.WAYS
        if kernel == "taps":
            yield "toeplitz"
            return
        batch, _, height, width = input.shape
        rule = toeplitz.choose_tile(batch, height, width, kernel_size[1], input.element_size())
        for block_m in (16, 32, 64, 128):
            for block_k in (32, 64, 128):
                for stages in (2, 3, 4):
                    warps = toeplitz.warps_for(block_m * rule.rows * rule.columns, input.element_size())
                    yield replace(rule, block_m=block_m, block_k=block_k, warps=warps, stages=stages)

    details = ("" if activation == "none" else f" {activation}") + ("" if input.is_contiguous() else " channels_last")
    return find(key(kernel, input, kernel_size, precision), details, toeplitz.Tile, options, run)


def grad_weight_way(input: Tensor, kernel_size: tuple[int, ...], precision: str, run: Run) -> Way | None:
    height, width = input.shape[2:]

    def options() -> Iterator[Way]:
        ranked = sorted(
            grad_weight.candidates(height, width, kernel_size[0], kernel_size[1], input.element_size()),
            key=lambda option: option[0],
        )
        yield ranked[0][1]
        yield from pytorch.WAYS
        for _, tile in ranked[:8]:
            for stages in (2, 3, 4):
                for warps in (4, 8):
                    if (option := replace(tile, stages=stages, warps=warps)) != ranked[0][1]:
                        yield option

    details = "" if input.is_contiguous() else " channels_last"
    return find(key("grad_weight", input, kernel_size, precision), details, grad_weight.GradWeightTile, options, run)
