"""The tensor-core kernel: its arithmetic through the interpreter, its machine code for every architecture."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from cases import CASES
from compiled_kernels import STAGES, compile_forward, compile_pair
from device_stand_ins import BY_TIME, interpreted
from machine_code import SHARED_LIMIT, TENSOR_CORES

from kernels import depthwise_conv2d

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "kernels/depthwise_conv2d/tiles.json"


@pytest.mark.parametrize("dtypes", BY_TIME, ids="-".join)
def test_interpreted(dtypes):
    for lines in interpreted("toeplitz_interpreted.py", dtypes).values():
        assert lines == ["every_case 54", "other_tiles 6", "what_is_not_finite 6"]


@pytest.mark.parametrize("architecture", sorted(SHARED_LIMIT))
@pytest.mark.parametrize(
    ("stage", "dtype"), [*((stage, torch.bfloat16) for stage in STAGES), ("stage1", torch.float32)]
)
def test_machine_code(architecture, stage, dtype, tmp_path):
    """Tensor-core instructions (none in IEEE float32), asynchronous copies, no spills, within the limits."""
    from kernels.depthwise_conv2d.kernel import ACTIVATIONS
    from kernels.depthwise_conv2d.toeplitz import choose_tile

    _, size, kernel = STAGES[stage]
    tile = choose_tile(64, size, size, kernel, dtype.itemsize)
    code = compile_forward(architecture, dtype, tile, size, tmp_path, ACTIVATIONS["gelu"])
    code.check(architecture, tile.warps)
    assert code.has(TENSOR_CORES[architecture]) == (dtype == torch.bfloat16)
    assert code.has("LDGSTS.E.BYPASS.128") or code.has("LDGSTS.E.BYPASS.LTC128B.128")
    assert stage == "stage4" or "STS.U16" not in code.text  # nothing is copied through registers by single elements
    if size % 2 == 0 and dtype == torch.bfloat16:  # the input too: what is left is the bias and the two of a rare NaN
        assert code.text.count("LDG.E.U16") <= 3


@pytest.mark.parametrize("entry", sorted(json.loads(TABLE.read_text())))
def test_shipped_tiles_compile_within_the_limits(entry, tmp_path):
    """A tile of the table is used on its own architecture (grad_weight's are the rule's: test_grad_weight.py)."""
    from kernels.depthwise_conv2d import grad_weight, toeplitz

    operation, name, _, shape, kernel = entry.split()
    size, kernel_size, architecture = int(shape.split("x")[2]), int(kernel.split("x")[0]), int(name[3:])
    values = json.loads(TABLE.read_text())[entry]
    if operation == "grad_weight":
        assert values == asdict(grad_weight.choose_tile(size, size, kernel_size, kernel_size, 2))
        return
    tile = toeplitz.Tile(**values)
    code = compile_forward(architecture, torch.bfloat16, tile, size, tmp_path)
    code.check(architecture, tile.warps)
    assert code.has(TENSOR_CORES[architecture])


WIDE = {(architecture, torch.bfloat16, 1) for architecture in (80, 86, 89, 90, 100)}
WIDE |= {(architecture, torch.bfloat16, 2) for architecture in (90, 100)}
LARGEST = [  # the forward kernel, the pair's, types; one architecture of each family, the rest slow
    pytest.param(*each, marks=() if each in {(90, "bfloat16", 1), (120, "bfloat16", 2)} else pytest.mark.slow)
    for each in itertools.product(sorted(SHARED_LIMIT), ("bfloat16", "float32"), (1, 2))
]


@pytest.mark.parametrize(("architecture", "dtype", "outputs"), LARGEST)
def test_the_tuners_largest_tile_fits(architecture, dtype, outputs, tmp_path, monkeypatch):
    """No spills, within the limits: blocks of 256 (row block, image) pairs where the registers hold their sums, else of
    128; half as many where there are two filters' sums."""
    from kernels.depthwise_conv2d import tuning

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: divmod(architecture, 10))
    dtype = getattr(torch, dtype)
    tile = next(tuning.toeplitz_tiles(torch.zeros(64, 1, 56, 56, dtype=dtype), 31, outputs))
    assert tile.block_m * outputs == (256 if (architecture, dtype, outputs) in WIDE else 128)
    compiled = compile_forward if outputs == 1 else compile_pair
    compiled(architecture, dtype, tile, 56, tmp_path).check(architecture, tile.warps)


def test_tile_of_each_stage():
    from kernels.depthwise_conv2d.toeplitz import choose_tile

    tiles = {stage: choose_tile(64, size, size, kernel, 2) for stage, (_, size, kernel) in STAGES.items()}
    assert {stage: (t.rows, t.columns, t.window, t.offset) for stage, t in tiles.items()} == {
        "stage1": (8, 16, 48, 16),
        "stage2": (4, 32, 32, 0),
        "stage3": (8, 16, 16, 0),
        "stage4": (8, 8, 16, 0),
    }
    assert choose_tile(1, 14, 14, 27, 2).block_m == 16  # a batch of one does not fill a block of 64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bitwise_the_same_on_the_gpu(problem, case):
    p = problem(case, torch.bfloat16, device="cuda")
    arguments = (p.input, p.weight, p.bias)
    assert torch.equal(depthwise_conv2d(*arguments), depthwise_conv2d(*arguments))
