"""Which way a shape goes: the user's own measurement, else the shipped table, else the rule.

WIDEFIELD_AUTOTUNE=1 measures every shape once, when it is first seen, ours and PyTorch's convolution in both memory
formats, and keeps the answers in $WIDEFIELD_TILES, else in widefield/tiles.json of $XDG_CACHE_HOME or ~/.cache: a tile
or the word for another way (dispatch.py). The shipped table's tile comes first, then the rule's and PyTorch's
ways, and after WIDEFIELD_AUTOTUNE_SECONDS (60) for a shape no further tile is tried. tiles.json beside this file is the
shipped table: sm_90's entries were measured on an H200, sm_80's are reasoned from them and from byte counts.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.depthwise_conv2d import grad_weight, pytorch, toeplitz

SHARED_KIB = {(8, 0): 163, (9, 0): 227, (10, 0): 227}  # a block may have; 99 on the others
SLOWER = 2.0  # than the least single call: such a way is not measured further
TABLE = Path(__file__).with_name("tiles.json")
WORDS = ("toeplitz", "taps", *pytorch.WAYS)
Way = toeplitz.Tile | grad_weight.GradWeightTile | str  # a tile, or one of WORDS
Run = Callable[[Way], Any]


def cache_file() -> Path:
    return _cache_file(*map(os.environ.get, ("WIDEFIELD_TILES", "XDG_CACHE_HOME", "HOME")))


@cache
def _cache_file(tiles: str | None, cache_home: str | None, home: str | None) -> Path:
    """Made once: every call of the operator asks for it, and making it takes longer than a small layer."""
    if tiles:
        return Path(tiles)
    return Path(cache_home or os.path.expanduser("~/.cache"), "widefield", "tiles.json")  # a user may have no home


def key(operation: str, input: Tensor, kernel_size: tuple[int, ...], precision: str) -> str:
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
    """The ways of a file by key; empty where there is none, or in a folder that is closed. Raises `TilesError`."""
    try:
        ways = json.loads(path.read_text()) if os.path.isfile(path) else {}  # pathlib's raises where it may not look
    except OSError as error:
        raise TilesError(path, f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise TilesError(path, f"is damaged ({error})") from error
    if not isinstance(ways, dict):
        raise TilesError(path, f"holds a {type(ways).__name__} in place of tiles by shape")
    return ways


def way_in(path: Path, name: str, kind: type) -> Way:
    """The tile or the word that a file has for a shape. Raises `TilesError`."""
    way = read(path)[name]
    if way in WORDS:
        return way
    try:
        return kind(**way)
    except TypeError as error:
        raise TilesError(path, f"has {way!r} for {name!r}, which is not a tile of this version") from error


def remember(name: str, way: Way) -> None:
    """Written whole and moved in place: another process sees the old file or the new one, and adds to the newest."""
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:  # beside it: the file itself is replaced
        fcntl.flock(lock, fcntl.LOCK_EX)
        read.cache_clear()
        ways = read(path) | {name: way if isinstance(way, str) else asdict(way)}
        draft = path.with_name(f".{path.name}.{os.getpid()}")  # the lock's holder is its only writer
        draft.write_text(json.dumps(ways, indent=1, sort_keys=True))  # as readable as the umask has files: it is shared
        os.replace(draft, path)
        read.cache_clear()


@cache
def shipped(table: Path, name: str) -> dict[str, Any] | None:
    """The `table`'s tile for the key `name`, else that of the largest batch below: more programs of the same kind.

    Tiles of bfloat16 serve float16, whose bytes and tensor-core instructions are the same.
    """

    def parts(key: str) -> tuple[int, list[str]]:
        *kind, shape, kernel = key.split()  # "toeplitz sm_90 bfloat16 64x128x56x56 31x31"
        batch, _, image = shape.partition("x")
        return int(batch), ["bfloat16" if word == "float16" else word for word in (*kind, image, kernel)]

    most, layer = parts(name)
    tiles = {parts(key)[0]: tile for key, tile in read(table).items() if parts(key)[1] == layer}
    return tiles.get(max((batch for batch in tiles if batch <= most), default=0))


def find(plain: str, details: str, kind: type, options: Callable[[], Iterator[Way]], run: Run) -> Way | None:
    """The way to go; None leaves it to the rule. A tile found for `plain` serves what differs from it in `details`."""
    path, name, table = cache_file(), plain + details, shipped(TABLE, plain)
    tile = kind(**table) if table else None
    tunes = os.environ.get("WIDEFIELD_AUTOTUNE") == "1" and not torch.cuda.is_current_stream_capturing()
    if tunes and name not in read(path):
        remember(name, fastest(dict.fromkeys([*([tile] if tile else []), *options()]), run))
    if name in read(path):
        return way_in(path, name, kind)
    return way_in(path, plain, kind) if isinstance(read(path).get(plain), dict) else tile


def one_call_ms(run: Callable[[], Any]) -> float:
    """Of the second call: the first compiles."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    run()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def fastest(options: Iterable[Way], run: Run) -> Way:
    """By the median time of those whose single call takes at most SLOWER times the least one's.

    What the device has no room for, or cuDNN no algorithm, is passed over. Every word, and each tile before the first
    word, has its call; no other tile is tried when the time is over.
    """
    deadline = time.monotonic() + float(os.environ.get("WIDEFIELD_AUTOTUNE_SECONDS", "60"))
    times: dict[Way, float] = {}
    least, words = float("inf"), False
    failure: Exception | None = None
    for way in options:
        words |= isinstance(way, str)
        if words and not isinstance(way, str) and times and time.monotonic() > deadline:
            break
        try:
            once = one_call_ms(lambda way=way: run(way))  # type: ignore[misc]
            if once > SLOWER * least:
                continue
            least = min(least, once)
            times[way] = triton.testing.do_bench(lambda way=way: run(way), warmup=5, rep=25, return_mode="median")
        except (triton.errors.TritonError, RuntimeError) as error:
            failure = error
    if not times:
        raise RuntimeError(f"no way to compute this shape could be measured; the last one's failure: {failure}")
    return min(times, key=lambda way: times[way])


def most_sums(capability: tuple[int, int], element_bytes: int) -> int:
    """Sums (block_m * rows * columns) that 8 warps hold without spilling registers: as compiled for every architecture
    (tests/kernels/test_toeplitz.py)."""
    return 256 * 128 if element_bytes == 2 and capability[0] in (8, 9, 10) else 128 * 128


def toeplitz_tiles(input: Tensor, kernel_width: int) -> Iterator[toeplitz.Tile]:
    """The rule's tile with other rows and blocks that the batch fills and the shared memory holds, the largest first:
    they fetch the least."""
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
        yield from toeplitz_tiles(input, kernel_size[1])

    details = ("" if activation == "none" else f" {activation}") + ("" if input.is_contiguous() else " channels_last")
    return find(key(kernel, input, kernel_size, precision), details, toeplitz.Tile, options, run)


def grad_weight_way(input: Tensor, kernel_size: tuple[int, ...], precision: str, run: Run) -> Way | None:
    height, width = input.shape[2:]

    def options() -> Iterator[Way]:
        ranked = sorted(
            grad_weight.candidates(height, width, kernel_size[0], kernel_size[1], input.element_size()),
            key=lambda option: option[0],
        )
        yield from (tile for _, tile in ranked[:1])
        yield from pytorch.WAYS
        for _, tile in ranked[:8]:
            for stages in (2, 3, 4):
                for warps in (4, 8):
                    yield replace(tile, stages=stages, warps=warps)

    details = "" if input.is_contiguous() else " channels_last"
    return find(key("grad_weight", input, kernel_size, precision), details, grad_weight.GradWeightTile, options, run)
