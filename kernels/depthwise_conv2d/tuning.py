"""The algorithm for a shape: the user's own measurement, else the shipped table, else the rule.

WIDEFIELD_AUTOTUNE=1 measures every shape when it is first seen: our kernels, and PyTorch's convolution in both memory
formats. The fastest, a tile or the name of another algorithm (dispatch.py), is kept in $WIDEFIELD_TILES, else in a file
in $XDG_CACHE_HOME/widefield or ~/.cache/widefield, whose name changes with Triton's version and the sources in this
folder. The shipped table's tile is measured first, through the L1 cache and past it, then the rule's and PyTorch's
algorithms, then other tiles until a shape has taken WIDEFIELD_AUTOTUNE_SECONDS (60). The shipped table is tiles.json in
this folder: sm_90's entries were measured on an H200, sm_80's reasoned from them and from byte counts.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.depthwise_conv2d import grad_weight, pytorch, tile_files, toeplitz
from kernels.depthwise_conv2d.tile_files import Algorithm, key

SHARED_KIB = {(8, 0): 163, (9, 0): 227, (10, 0): 227}  # of shared memory in a block; 99 on others
SLOWER = 2.0  # times the fastest single call: beyond it an algorithm is not timed further
Run = Callable[[Algorithm], Any]


def find(
    plain: str, details: str, kind: type, options: Callable[[], Iterator[Algorithm]], run: Run
) -> Algorithm | None:
    """Return the algorithm to use, or None for the rule's. A tile for `plain` serves calls that differ in `details`."""
    path, name, tile = tile_files.cache_file(), plain + details, tile_files.shipped_tile(plain, kind)
    tunes = autotunes() and not torch.cuda.is_current_stream_capturing()
    if tunes and name not in tile_files.read(path):
        tile_files.remember(name, fastest(dict.fromkeys(both_cached([*([tile] if tile else []), *options()])), run))
    if name in tile_files.read(path):
        return tile_files.algorithm_in(path, name, kind)
    return tile_files.algorithm_in(path, plain, kind) if isinstance(tile_files.read(path).get(plain), dict) else tile


def both_cached(options: Iterable[Algorithm]) -> Iterator[Algorithm]:
    """Yield each option, and after a tile of the Toeplitz kernel the one that differs in `cached`."""
    for option in options:
        yield option
        if isinstance(option, toeplitz.Tile):
            yield replace(option, cached=not option.cached)


def autotunes() -> bool:
    """Whether $WIDEFIELD_AUTOTUNE is 1. Raises `ValueError` unless it is 0 or 1, or not set."""
    switch = os.environ.get("WIDEFIELD_AUTOTUNE", "0")
    if switch not in ("0", "1"):
        raise ValueError(f"WIDEFIELD_AUTOTUNE={switch}: 1 measures every new shape, 0 none")
    return switch == "1"


def autotune_seconds() -> float:
    """Return $WIDEFIELD_AUTOTUNE_SECONDS or 60. Raises `ValueError` unless it is a number."""
    text = os.environ.get("WIDEFIELD_AUTOTUNE_SECONDS", "60")
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"WIDEFIELD_AUTOTUNE_SECONDS={text}: a number of seconds is expected, such as 60") from None


def one_call_ms(run: Callable[[], Any]) -> float:
    """Return the milliseconds of the second call; the first compiles."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    run()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def fastest(options: Iterable[Algorithm], run: Run) -> Algorithm:
    """Return the option with the least median time, among those of at most SLOWER times the fastest single call.

    An option that raises is skipped: the device lacks room for it, or cuDNN an algorithm. Every named algorithm, and
    each tile before the first of them, is called once; no other tile is tried after WIDEFIELD_AUTOTUNE_SECONDS. Raises
    `RuntimeError` if all options raise.
    """
    deadline = time.monotonic() + autotune_seconds()
    times: dict[Algorithm, float] = {}
    least, named = float("inf"), False
    failure: Exception | None = None
    for option in options:
        named |= isinstance(option, str)
        if named and not isinstance(option, str) and times and time.monotonic() > deadline:
            break
        call = partial(run, option)
        try:
            once = one_call_ms(call)
            if once > SLOWER * least:
                continue
            least = min(least, once)
            times[option] = triton.testing.do_bench(call, warmup=5, rep=25, return_mode="median")
        except (triton.errors.TritonError, RuntimeError) as error:
            failure = error
    if not times:
        raise RuntimeError(f"no algorithm for this shape could be measured; the last one failed: {failure}")
    return min(times, key=lambda option: times[option])


def most_sums(capability: tuple[int, int], element_bytes: int) -> int:
    """Return the most sums (block_m * rows * columns) that 8 warps hold without spilling registers, from the code
    compiled for every architecture (tests/kernels/test_toeplitz.py)."""
    return 256 * 128 if element_bytes == 2 and capability[0] in (8, 9, 10) else 128 * 128


def toeplitz_tiles(input: Tensor, kernel_width: int) -> Iterator[toeplitz.Tile]:
    """Yield the rule's tile with other rows and blocks that the batch fills and the shared memory holds.

    The largest come first: they fetch the least.
    """
    batch, _, height, width = input.shape
    element_bytes = input.element_size()
    rule = toeplitz.choose_tile(batch, height, width, kernel_width, element_bytes)
    capability = torch.cuda.get_device_capability(input.device)
    room, sums = 1024 * SHARED_KIB.get(capability, 99), most_sums(capability, element_bytes)
    steps = ((64, 3), (64, 4), (32, 4), (64, 2), (128, 2)) if element_bytes == 2 else ((32, 3), (32, 2), (64, 2))
    for rows in dict.fromkeys((2 * rule.rows, rule.rows, max(1, rule.rows // 2))):
        pixels = rows * rule.columns
        pairs = batch * triton.cdiv(height, rows)
        for block_m in (128, 64, 256, 32, 16):
            if block_m > max(16, triton.next_power_of_2(pairs)) or block_m * pixels > sums or pixels > 256:
                continue
            warps = toeplitz.warps_for(block_m * pixels, element_bytes)
            for block_k, stages in steps:
                if (stages - 1) * block_k * (block_m + pixels) * element_bytes <= room:
                    yield replace(rule, rows=rows, block_m=block_m, block_k=block_k, warps=warps, stages=stages)


def forward_algorithm(
    input: Tensor, kernel_size: tuple[int, ...], activation: str, precision: str, kernel: str, run: Run
) -> Algorithm | None:
    """Return the algorithm to use, or None for the rule's, which is `kernel`: "toeplitz" or "taps".

    For "taps" the tuner tries "toeplitz" with the rule's tile only.
    """

    def options() -> Iterator[Algorithm]:
        yield kernel
        yield from pytorch.MEMORY_FORMATS
        if kernel == "taps":
            yield "toeplitz"
            return
        yield from toeplitz_tiles(input, kernel_size[1])

    details = ("" if activation == "none" else f" {activation}") + ("" if input.is_contiguous() else " channels_last")
    return find(key(kernel, input, kernel_size, precision), details, toeplitz.Tile, options, run)


def grad_weight_algorithm(input: Tensor, kernel_size: tuple[int, ...], precision: str, run: Run) -> Algorithm | None:
    """Return the algorithm to use for the filter's gradient, or None for the rule's."""
    height, width = input.shape[2:]

    def options() -> Iterator[Algorithm]:
        ranked = sorted(
            grad_weight.candidates(height, width, kernel_size[0], kernel_size[1], input.element_size()),
            key=lambda option: option[0],
        )
        yield from (tile for _, tile in ranked[:1])
        yield from pytorch.MEMORY_FORMATS
        for _, tile in ranked[:8]:
            for stages in (2, 3, 4):
                for warps in (4, 8):
                    yield replace(tile, stages=stages, warps=warps)

    details = "" if input.is_contiguous() else " channels_last"
    return find(key("grad_weight", input, kernel_size, precision), details, grad_weight.GradWeightTile, options, run)
