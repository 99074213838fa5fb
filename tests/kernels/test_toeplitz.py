"""The tensor-core kernel: its arithmetic through the interpreter, its machine code for every architecture."""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases import CASES, Case
from compiled_kernels import STAGES, compile_forward, compile_grad_weight, compile_whole_image
from device_stand_ins import interpreted
from machine_code import ARCHITECTURES, NEW_TRITON, SHARED_LIMIT, TENSOR_CORES

from kernels import depthwise_conv2d

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "kernels/depthwise_conv2d/tiles.json"


SLOW = [pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("float32", "bfloat16")]


@pytest.mark.parametrize("dtype", ["float16", *SLOW])
def test_interpreted(dtype):
    """Half a minute each. float32's products are also test_precision.py's."""
    for lines in interpreted("toeplitz_interpreted.py", (dtype,)).values():
        assert lines == [
            "every_case 12",
            "largest_filters 3",
            "turned 23",
            "other_tiles 10",
            "whole_images 20",
            "what_is_not_finite 14",
        ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("stage", "dtype"), [*((stage, torch.bfloat16) for stage in STAGES), ("stage1", torch.float32)]
)
def test_machine_code(architecture, stage, dtype, tmp_path):
    """Tensor-core instructions (none in IEEE float32), asynchronous copies, no spills, within the limits."""
    from kernels.depthwise_conv2d.activation import ACTIVATIONS
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("entry", sorted(json.loads(TABLE.read_text())))
def test_shipped_tiles_compile_within_the_limits(entry, dtype, tmp_path):
    """A tile of the table is used on its own architecture."""
    from kernels.depthwise_conv2d import grad_weight, toeplitz

    operation, name, _, shape, kernel = entry.split()
    size, kernel_size, architecture = int(shape.split("x")[2]), int(kernel.split("x")[0]), int(name[3:])
    values = json.loads(TABLE.read_text())[entry]
    if operation == "grad_weight":
        tile = grad_weight.GradWeightTile(**values)
        code, _ = compile_grad_weight(architecture, size, kernel_size, dtype, tmp_path, tile=tile)
        code.check(architecture, tile.warps)
        return
    tile = toeplitz.Tile(**values)
    for cached in dict.fromkeys((tile, replace(tile, cached=True))):  # the tuner tries the second too
        code = compile_forward(architecture, dtype, cached, size, tmp_path)
        if cached == tile or NEW_TRITON or architecture != 80:  # Triton 3.6's copies of 8 bytes spill there
            code.check(architecture, tile.warps)
        assert code.has(TENSOR_CORES[architecture])
        through_l1 = re.search(r"LDGSTS\.E\.(LTC128B\.)?(128|64)\b", code.text)
        assert bool(through_l1) == cached.cached


PACKED = [Case(64, 512, 14, 14, 27, 27), Case(65, 9, 7, 7, 13, 13), Case(1, 3, 5, 4, 51, 9)]
WIDE = {(architecture, torch.bfloat16) for architecture in (80, 86, 89, 90, 100)}
LARGEST = [  # one architecture with the wide block and one without, the rest slow
    pytest.param(*each, marks=() if each in {(90, "bfloat16"), (120, "bfloat16")} else pytest.mark.slow)
    for each in itertools.product(sorted(SHARED_LIMIT), ("bfloat16", "float32"))
]


@pytest.mark.parametrize(("architecture", "dtype"), LARGEST)
def test_the_tuners_largest_tile_fits(architecture, dtype, tmp_path, monkeypatch):
    """No spills, within the limits: 128 pairs by 256 pixels where the registers hold their sums, else half as many."""
    from kernels.depthwise_conv2d import tuning

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: divmod(architecture, 10))
    dtype = getattr(torch, dtype)
    tile = next(tuning.toeplitz_tiles(torch.zeros(64, 1, 56, 56, dtype=dtype), 31))
    assert tile.block_m * tile.rows * tile.columns == 128 * (256 if (architecture, dtype) in WIDE else 128)
    compile_forward(architecture, dtype, tile, 56, tmp_path).check(architecture, tile.warps)


def test_tile_of_each_stage():
    from kernels.depthwise_conv2d.toeplitz import choose_tile

    tiles = {stage: choose_tile(64, size, size, kernel, 2) for stage, (_, size, kernel) in STAGES.items()}
    assert {stage: (t.rows, t.columns, t.window, t.offset) for stage, t in tiles.items()} == {
        "stage1": (2, 64, 56, 0),
        "stage2": (4, 32, 28, 0),
        "stage3": (8, 16, 14, 0),
        "stage4": (8, 8, 7, 0),
    }
    assert choose_tile(1, 14, 14, 27, 2).block_m == 16  # a batch of one does not fill a block of 64
    assert choose_tile(80, 8, 16, 13, 2).block_m == 32  # 80 row blocks would leave three eighths of two of 64 idle
    assert choose_tile(64, 64, 64, 31, 2).is_flat(64)  # the widest rows that are taken whole
    wide = choose_tile(64, 112, 112, 31, 2)
    assert (wide.rows, wide.columns, wide.window, wide.offset) == (4, 32, 64, 16)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("stage", "batch"), [("stage3", 64), ("stage4", 64), ("stage3", 1)])
def test_machine_code_of_whole_images(architecture, stage, batch, tmp_path):
    """Tensor-core instructions, no spills; many taps are loaded at a constant's distance from one another."""
    _, size, kernel = STAGES[stage]
    code = compile_whole_image(architecture, size, kernel, torch.bfloat16, batch, tmp_path)
    code.check(architecture, 8 if batch > 16 else 4)
    assert code.has(TENSOR_CORES[architecture] if batch >= 64 else "HMMA")
    loads = re.findall(r"LDG\.E\.U16\S* R\d+, .*", code.text)
    assert sum("+0x" in load or "+-0x" in load for load in loads) > len(loads) / (3 if NEW_TRITON else 4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("stage", "batch"), [("stage3", 64), ("stage4", 64), ("stage3", 1)])
def test_machine_code_of_packed_images(architecture, stage, batch, tmp_path):
    """A program reads what it has written after its barrier, in vectors, and never from the read-only cache."""
    _, size, kernel = STAGES[stage]
    code = compile_whole_image(architecture, size, kernel, torch.bfloat16, batch, tmp_path, "packed_image")
    code.check(architecture, 8 if batch > 16 else 4)
    assert code.has(TENSOR_CORES[architecture] if batch >= 64 else "HMMA")
    written, vectors = code.text.index("STG.E"), [each.start() for each in re.finditer(r"LDG\.E\.128", code.text)]
    assert written < code.text.index("BAR.SYNC", written) < min(vectors)
    assert not code.has("LDG.E.128.CONSTANT")
    # The taps of 257 images of 65,535 channels of 9 x 9 are 2^31 elements, the images fewer.
    assert re.search(r"tt\.addptr %packed_ptr\S*, %\S+ : \S+, i64", code.ir)
    assert len(re.findall("LDG", code.text)) < 70  # whole_image.py has 32 of 2 bytes in the loop alone


@pytest.mark.parametrize(
    ("form", "programs"), [((False, 16, 4), 5), ((False, 128, 4), 6), ((True, 64, 4), 7), ((True, 16, 4), 6)]
)
def test_machine_code_of_forms_for_small_images(form, programs, tmp_path):
    """Those that benchmarks/kernels tries at 7 x 7: more programs on a multiprocessor than the 4 of the rule's form."""
    _, size, kernel = STAGES["stage4"]
    name = "packed_image" if form[0] else "whole_image"
    code = compile_whole_image(90, size, kernel, torch.bfloat16, 64, tmp_path, name, form)
    warps = form[2]
    code.check(90, warps)
    assert code.has("HGMMA")
    if NEW_TRITON:
        assert (
            min(2**16 // (-(-code.registers // 8) * 8 * 32 * warps), 227 * 2**10 // (code.shared + 2**10)) == programs
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", PACKED, ids=str)
def test_forms_for_small_images_on_the_gpu(problem, case, dtype, flip):
    from kernels.depthwise_conv2d import dispatch
    from kernels.depthwise_conv2d.whole_image import WholeImageTile

    p = problem(case, dtype, "gelu", device="cuda")
    weight = p.weight.flip(2, 3).contiguous() if flip else p.weight
    for form in ((True, 32, 8), (True, 64, 4), (False, 16, 4)):
        arguments = (WholeImageTile(*form), p.input, weight, p.bias, "gelu", "ieee", flip)
        output = dispatch.run_forward(*arguments)
        p.check(output)
        assert torch.equal(output, dispatch.run_forward(*arguments))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bitwise_the_same_on_the_gpu(problem, case):
    p = problem(case, torch.bfloat16, device="cuda")
    arguments = (p.input, p.weight, p.bias)
    assert torch.equal(depthwise_conv2d(*arguments), depthwise_conv2d(*arguments))
