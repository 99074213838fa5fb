"""The counts behind docs/kernels.md, on tiles small enough to count by hand."""

import pytest

from benchmarks.kernels import expected
from benchmarks.kernels.layers import Layer, replknet_31b
from kernels.depthwise_conv2d.toeplitz import Tile

WHOLE = Tile(rows=8, columns=8, window=16, offset=0, block_m=64, block_k=64, warps=4, stages=3)


def test_rows_beyond_the_image_are_skipped():
    layer = Layer(64, 1, 7, 13, "bfloat16")  # 7 of 20 rows: 7 * 16 / 64 turns
    assert expected.steps(layer, WHOLE) == 2
    assert expected.steps(Layer(128, 1, 7, 13, "bfloat16"), WHOLE) == 4
    assert expected.steps(Layer(64, 1, 7, 3, "bfloat16"), WHOLE) == 2  # 8 of 10 rows


def test_a_program_of_two_row_blocks_takes_the_rows_of_both():
    layer = Layer(2, 1, 16, 3, "bfloat16")  # 2 images x 2 row blocks, 2 tiles side by side
    tile = Tile(rows=8, columns=8, window=16, offset=0, block_m=4, block_k=16, warps=4, stages=3)
    assert expected.steps(layer, tile) == 2 * 10
    assert expected.steps(layer, Tile(**{**vars(tile), "block_m": 2})) == 2 * (9 + 9)  # a border row less each


def test_the_cost_of_one_turn():
    found = expected.cost(Layer(64, 3, 7, 13, "bfloat16"), WHOLE)
    assert found.flops == 2 * 3 * 2 * 64 * 64 * 64
    assert found.l2_bytes == 2 * 3 * 2 * 64 * (64 + 64)
    assert found.memory_bytes == 2 * (2 * 64 * 3 * 49 + 2 * 3 * 27 * 16 * 8)
    assert found.floor_us == pytest.approx(1e6 * found.memory_bytes / expected.MEMORY)


def test_every_stage_has_a_row():
    assert len(expected.table()) == 2 + len(replknet_31b(64))
