"""What the forward kernel's tiles cost on an H200, counted and not measured: `python -m benchmarks.kernels.expected`.

For each of RepLKNet-31B's stages in bfloat16 at batch 64: the products that the shipped tile computes, zeros of the
Toeplitz matrix and rows beyond the image included, and the bytes that its programs fetch.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.kernels.layers import Layer, replknet_31b
from kernels.depthwise_conv2d.toeplitz import Tile

TILES = Path(__file__).parents[2] / "kernels" / "depthwise_conv2d" / "tiles.json"
BATCH, BYTES = 64, 2  # bfloat16
# A second, on H200s as others have measured them; benchmarks.kernels measures its own.
TENSOR_FLOPS, MEMORY = 790e12, 4.3e12
GOALS_US = (230, 55, 15, 6)


@dataclass(frozen=True)
class Cost:
    """Of one layer's forward pass."""

    flops: int
    l2_bytes: int
    """Fetched by the programs: tiles of the image and of the packed filter, every step of the loop."""
    memory_bytes: int
    """Image read and written once, the packed filter written and read once."""

    @property
    def floor_us(self) -> float:
        """No time below this: the tensor cores' or the memory's, whichever is longer."""
        return 1e6 * max(self.flops / TENSOR_FLOPS, self.memory_bytes / MEMORY)


def shipped_tile(layer: Layer, architecture: str = "sm_90") -> Tile:
    shape = f"{layer.batch}x{layer.channels}x{layer.size}x{layer.size} {layer.kernel}x{layer.kernel}"
    return Tile(**json.loads(TILES.read_text())[f"toeplitz {architecture} bfloat16 {shape}"])


def steps(layer: Layer, tile: Tile) -> int:
    """Turns of the kernel's loop in all programs of one channel."""
    pairs = layer.batch * -(-layer.size // tile.rows)
    pad, count = layer.kernel // 2, 0
    for first in range(0, pairs, tile.block_m):
        last = min(first + tile.block_m, pairs) - 1
        begin = max(0, pad - last // layer.batch * tile.rows)
        end = min(layer.kernel + tile.rows - 1, layer.size + pad - first // layer.batch * tile.rows)
        count += -(-(end - begin) * tile.window // tile.block_k)
    return count * -(-layer.size // tile.columns)


def cost(layer: Layer, tile: Tile) -> Cost:
    turns, outputs = layer.channels * steps(layer, tile), tile.rows * tile.columns
    packed = layer.channels * (layer.kernel + 2 * (tile.rows - 1)) * tile.window * tile.columns
    image = layer.batch * layer.channels * layer.size**2
    return Cost(
        flops=2 * turns * tile.block_m * tile.block_k * outputs,
        l2_bytes=BYTES * turns * tile.block_k * (tile.block_m + outputs),
        memory_bytes=BYTES * (2 * image + 2 * packed),
    )


def table() -> list[str]:
    """Markdown."""
    lines = [
        "| stage | products, of the valid taps' | GFLOP | floor of the tensor cores, us | memory, MB | its floor, us | "
        "fetched from L2, GB | goal, us | L2 rate that the goal needs, TB/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for stage, (layer, goal) in enumerate(zip(replknet_31b(BATCH), GOALS_US, strict=True), start=1):
        found = cost(layer, shipped_tile(layer))
        cells = [
            f"{stage}: {layer.channels}, {layer.size}, {layer.kernel}",
            f"{found.flops / layer.flops:.2f}",
            f"{found.flops / 1e9:.1f}",
            f"{1e6 * found.flops / TENSOR_FLOPS:.1f}",
            f"{found.memory_bytes / 1e6:.0f}",
            f"{1e6 * found.memory_bytes / MEMORY:.1f}",
            f"{found.l2_bytes / 1e9:.2f}",
            str(goal),
            f"{found.l2_bytes / goal / 1e6:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table()))
