"""Variants that the sweep does not have: other forms of our kernels, strips, the fused activation, tf32.

A variant is one call of ours beside other computations of the same answer, checked and timed as the layers are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cuda_timing import sets_that_exceed_the_cache
from benchmarks.kernels.accuracy import bound, share
from benchmarks.kernels.candidates import NATIVE, OURS
from benchmarks.kernels.cuda import measure
from benchmarks.kernels.layers import Layer, replknet_31b
from benchmarks.timing import Step
from kernels import depthwise_conv2d, float32_precision
from kernels.depthwise_conv2d import dispatch, tile_files, toeplitz
from kernels.depthwise_conv2d.pytorch import convolution

Row = dict[str, Any]
Arguments = tuple[Tensor, ...]  # input [N,C,H,W], filter [C,1,Kh,Kw], perhaps a bias [C]
Compute = Callable[..., Any]
TF32_FACTOR = 2.0**13  # its rounding error over float32's


@dataclass(frozen=True)
class Variant:
    name: str
    layer: Layer
    filter: tuple[int, int]
    ways: dict[str, Compute]
    activation: str = "none"
    factor: float = 1.0  # of the bound of the error

    def __str__(self) -> str:
        return f"{self.name} {self.layer}"

    def arguments(self, device: str) -> Arguments:
        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device).to(self.layer.torch_dtype)

        channels, size = self.layer.channels, self.layer.size
        made = (random(self.layer.batch, channels, size, size), random(channels, 1, *self.filter) / self.filter[0])
        return (*made, random(channels)) if self.activation != "none" else made


def with_precision(precision: str) -> Compute:
    def compute(input: Tensor, weight: Tensor) -> Tensor:
        with float32_precision(precision):
            return depthwise_conv2d(input, weight)

    return compute


def activated(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(convolution(input, weight, bias))


# (packed, pixels of a step, warps) beside the rule's (False, 32, 8), by size of image. At 7 x 7 a multiprocessor holds
# 5, 6, 7 and 6 programs of these, and 4 of the rule's (sm_90, Triton 3.9); at 14 x 14 all that would be smaller spill.
SMALL_IMAGES = {7: ((False, 16, 4), (False, 128, 4), (True, 64, 4), (True, 16, 4)), 14: ((True, 32, 8),)}


def small_images(size: int) -> dict[str, Compute]:
    from kernels.depthwise_conv2d.whole_image import WholeImageTile

    ways = {f"{OURS} whole image": by_algorithm("toeplitz")}
    for packed, block_k, warps in SMALL_IMAGES[size]:
        tile = WholeImageTile(packed, block_k, warps)
        ways[f"{OURS} {'packed' if packed else 'whole'} image {block_k}x{warps}"] = by_algorithm(tile)
    return ways


def by_algorithm(algorithm: Any) -> Compute:
    return lambda input, weight: dispatch.run_forward(algorithm, input, weight, None, "none", "ieee")


def by_tile(cached: bool) -> Compute:
    """Compute by the shipped tile for the shape, else the rule's, whatever the user's own file has."""

    def compute(input: Tensor, weight: Tensor) -> Tensor:
        (batch, _, height, width), size = input.shape, (weight.shape[2], weight.shape[3])
        shipped = tile_files.shipped_tile(tile_files.key("toeplitz", input, size, "ieee"), toeplitz.Tile)
        tile = shipped or toeplitz.choose_tile(batch, height, width, size[1], input.element_size())
        return dispatch.run_forward(replace(tile, cached=cached), input, weight, None, "none", "ieee")

    return compute


def tiles() -> dict[str, Compute]:
    names = {f"{OURS} past L1": by_tile(False), f"{OURS} through L1": by_tile(True)}
    return names | {f"{OURS} by rule": by_algorithm("toeplitz")}


def forms() -> Iterator[Variant]:
    """The forms of our kernels that only a measurement can decide between (kernels/depthwise_conv2d/README.md)."""
    stages = replknet_31b(64)
    for layer in stages[2:]:
        yield Variant("small image", layer, (layer.kernel, layer.kernel), small_images(layer.size))
    for layer in (*stages[:2], *replknet_31b(64, "float16")[:2], *(replknet_31b(n)[0] for n in (256, 8, 1))):
        yield Variant("tile", layer, (layer.kernel, layer.kernel), tiles())


def variants() -> Iterator[Variant]:
    """The others, on RepLKNet-31B's largest stage and on the one where the model spends most time."""
    stages = replknet_31b(64)
    for layer in (stages[0], stages[2]):
        square = (layer.kernel, layer.kernel)
        for strip in ((layer.kernel, 5), (5, layer.kernel)):
            yield Variant("strip", layer, strip, {OURS: depthwise_conv2d, NATIVE: convolution})
        ways: dict[str, Compute] = {f"{OURS} fused": partial(depthwise_conv2d, activation="gelu"), NATIVE: activated}
        ways[f"{OURS} and gelu"] = lambda *arguments: F.gelu(depthwise_conv2d(*arguments))
        yield Variant("bias and gelu", layer, square, ways, "gelu")
        for precision in ("tf32x3", "tf32"):
            ways = {f"{OURS} {precision}": with_precision(precision), f"{OURS} ieee": depthwise_conv2d}
            ways[NATIVE] = convolution
            factor = TF32_FACTOR if precision == "tf32" else 4.0
            yield Variant(precision, replace(layer, dtype="float32"), square, ways, factor=factor)


def error_against_float64(variant: Variant, arguments: Arguments) -> Callable[[Tensor], float]:
    """Return a function from an answer to `arguments` to its largest error over the bound: right if at most 1."""
    wide = [t.double() for t in arguments]
    before, sums = convolution(*wide), convolution(*(t.abs() for t in wide))
    exact = before if variant.activation == "none" else F.gelu(before)
    limit = variant.factor * bound(sums, before, arguments[0].dtype)
    return lambda answer: share(answer, exact, limit)


def calls(compute: Compute, layout: torch.memory_format, sets: list[Arguments]) -> list[Step]:
    """A call for each set of inputs, whose images are in `layout` already, as the caller would keep them."""
    return [partial(compute, input.contiguous(memory_format=layout), *rest) for input, *rest in sets]


@torch.no_grad()
def measure_variant(variant: Variant, device: str) -> Row:
    """Return {"ways": {name: result of `measure`}, "fastest"}; if one of ours is wrong, "wrong" and no "fastest"."""
    layer = variant.layer
    sets = [variant.arguments(device) for _ in range(sets_that_exceed_the_cache(layer.bytes))]
    error_of = error_against_float64(variant, sets[0])
    chosen = {name: (compute, torch.contiguous_format) for name, compute in variant.ways.items()}
    if NATIVE in variant.ways:
        chosen[f"{NATIVE} channels_last"] = variant.ways[NATIVE], torch.channels_last
    ways = {name: measure(name.startswith(OURS), partial(calls, *way, sets), error_of) for name, way in chosen.items()}
    row: Row = {"variant": variant.name, "batch": layer.batch, "channels": layer.channels, "size": layer.size}
    row |= {"filter": list(variant.filter), "dtype": layer.dtype, "ways": ways}
    bad = {name: way for name, way in ways.items() if name.startswith(OURS) and "ms" not in way}
    if bad:
        return row | {"wrong": "; ".join(f"{name}: {way.get('wrong') or way['failed']}" for name, way in bad.items())}
    return row | {"fastest": min((name for name in ways if "ms" in ways[name]), key=lambda n: ways[n]["ms"].median)}


def line(row: Row) -> str:
    sides = "x".join(map(str, row["filter"]))
    name = f"{row['variant']:13} N {row['batch']:3} C {row['channels']:4} H {row['size']:3} {sides:5} {row['dtype']:8}"
    if "wrong" in row:
        return f"{name} WRONG: {row['wrong']}"
    times = [f"{who} {1000 * way['ms'].median:.2f} us" for who, way in row["ways"].items() if "ms" in way]
    return f"{name} {', '.join(times)}"
