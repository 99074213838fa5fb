"""The filter's gradient: its arithmetic through the interpreter, its machine code for every architecture."""

from pathlib import Path

import pytest
import torch
from compiled_kernels import POINTER, compile_grad_weight
from device_stand_ins import BY_TIME, interpreted
from machine_code import ARCHITECTURES, NEW_TRITON, TENSOR_CORES, machine_code

ROOT = Path(__file__).parents[2]
STAGES = {"stage1": (56, 31), "stage2": (28, 29), "stage3": (14, 27), "stage4": (7, 13), "largest": (56, 51)}


@pytest.mark.parametrize("dtypes", BY_TIME, ids="-".join)
def test_interpreted(dtypes):
    for dtype, lines in interpreted("grad_weight_interpreted.py", dtypes).items():
        tiles = 15 if dtype == "float32" else 16
        assert lines == ["every_case 13", f"every_tile {tiles}", "what_is_not_finite 6"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("stage", sorted(STAGES))
def test_machine_code(architecture, stage, tmp_path):
    """Tensor cores, asynchronous copies alone where rows are even, no spills, within the limits."""
    size, kernel_size = STAGES[stage]
    code, tile = compile_grad_weight(architecture, size, kernel_size, torch.bfloat16, tmp_path)
    code.check(architecture, tile.warps)
    assert code.has(TENSOR_CORES[architecture])
    assert code.has("LDGSTS") == (size % 2 == 0)
    assert code.has("LDG") == (size % 2 == 1)
    if stage == "stage1":
        assert code.has("LDGSTS.E.BYPASS.128") or code.has("LDGSTS.E.BYPASS.LTC128B.128")


def test_arguments_of_one_are_constants_to_the_compiler(tmp_path):
    """One image of one channel: the just-in-time compiler passes a 1 as a constant."""
    code, tile = compile_grad_weight(90, 14, 27, torch.bfloat16, tmp_path, N=1, C=1, steps=1)
    code.check(90, tile.warps)


@pytest.mark.parametrize("ones", [(), ("N", "C", "splits", "skip_y", "lead")], ids=["many", "one"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_machine_code_of_the_reduction(dtype, ones, tmp_path):
    if not NEW_TRITON and not ones:
        pytest.skip("Triton 3.6 spills here")
    import triton.language as tl

    from kernels.depthwise_conv2d.grad_weight import BLOCK_TAPS
    from kernels.depthwise_conv2d.grad_weight_kernel import reduce_kernel

    constants = {
        "SUM": tl.float64 if dtype == torch.float32 else tl.float32,
        "STEP_Y": 2,
        "STEP_X": 8,
        "TAPS": 32,
        "WINDOW": 32,
        "EXTRA": 16,
    }
    constants |= {"BLOCK_TAPS": BLOCK_TAPS, "BLOCK_PIXELS": 1024} | dict.fromkeys(ones, 1)
    pointers = {name: POINTER[dtype] for name in ("grad_ptr", "input_ptr", "grad_weight_ptr")} | {
        "partial_ptr": "*fp32"
    }
    machine_code(reduce_kernel, 90, pointers, constants, 4, 3, tmp_path).check(90, 4)


def test_a_filter_of_more_blocks_than_the_grid_s_second_dimension_has(monkeypatch):
    from kernels.depthwise_conv2d import grad_weight

    grids = []

    class Recorder:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *_, **__: None

    for name in ("grad_weight_kernel", "reduce_kernel"):
        monkeypatch.setattr(grad_weight, name, Recorder())
    image, result = (torch.empty(shape, device="meta") for shape in ((1, 3, 5, 5), (3, 1, 2**12 + 1, 2**12 + 1)))
    grad_weight.launch(image, image, result)
    assert [grid[1] for grid in grids] == [3, 3]


def test_tile_of_each_stage():
    """Steps fill the powers of two that the tensor cores want; taps that no pixel sees are left out."""
    from kernels.depthwise_conv2d.grad_weight import candidates, choose_splits, choose_tile

    tiles = {stage: choose_tile(size, size, kernel, kernel, 2) for stage, (size, kernel) in STAGES.items()}
    products = {s: (t.step_y, t.step_x, t.taps * t.step_x, t.step_y * (t.window + t.extra)) for s, t in tiles.items()}
    assert products["stage1"] == (2, 8, 256, 96)
    assert products["stage2"] == (4, 4, 128, 128)
    assert products["stage3"] == (4, 2, 64, 128)
    assert products["stage4"] == (4, 4, 64, 64)
    assert choose_tile(7, 7, 51, 51, 2) == tiles["stage4"]
    assert {tile.step_x for _, tile in candidates(47, 47, 47, 47, 2) if tile.extra} == {1, 2}  # up to 48 pixels
    assert choose_splits(64 * 28 * 7, 128, 64) == (3, 66)  # few channels: three programs for each
    assert choose_splits(4, 1, 64) == (1, 1)
    assert choose_splits(20 * 64, 1, 64) == (2, 10)  # each has its eight steps, however many could run
    assert choose_splits(1057 * 64, 2, 64) == (118, 9)  # of 132 programs the last 14 would have none
