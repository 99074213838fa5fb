"""The tensor-core kernel: its arithmetic through the interpreter, its machine code for every architecture."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import CASES, Case

from kernels import depthwise_conv2d

ROOT = Path(__file__).parents[2]
INTERPRETED = ROOT / "tests/kernels/toeplitz_interpreted.py"
STAGES = {  # of RepLKNet-31B at 224 px: channels, height = width, kernel
    "stage1": (128, 56, 31),
    "stage2": (256, 28, 29),
    "stage3": (512, 14, 27),
    "stage4": (1024, 7, 13),
}
SHARED_LIMIT = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB a block
TENSOR_CORES = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_interpreted(dtype):
    """In a process of its own: TRITON_INTERPRET is read when Triton is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": f"{ROOT}:{INTERPRETED.parent}"}
    done = subprocess.run([sys.executable, str(INTERPRETED), dtype], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == ["every_case 54", "other_tiles 6", "what_is_not_finite 6"]


def compile_for(architecture, dtype, tile, width, activation=0, precision="ieee"):
    """As the just-in-time compiler would for an aligned contiguous input: (cubin, shared bytes)."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from kernels.depthwise_conv2d.toeplitz import toeplitz_kernel as kernel

    constants = {"ROWS": tile.rows, "COLUMNS": tile.columns, "WINDOW": tile.window, "BLOCK_M": tile.block_m}
    constants |= {"BLOCK_K": tile.block_k, "ALIGNMENT": max(a for a in (1, 2, 4, 8) if width % a == 0)}
    constants |= {"PRECISION": precision, "ACTIVATION": activation, "INDEX": tl.int32, "INTERPRETED": False}
    constants |= {"stride_w": 1}
    pointer = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}[dtype]
    signature = {
        name: "constexpr" if name in constants else pointer if name.endswith("_ptr") else "i32"
        for name in kernel.arg_names
    }
    aligned = {
        (index,): [["tt.divisibility", 16]] for index, name in enumerate(kernel.arg_names) if name.endswith("_ptr")
    }
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    return compiled.asm["cubin"], compiled.metadata.shared


def run_tool(name, *arguments):
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / name
    return subprocess.run([str(tool), *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("architecture", sorted(SHARED_LIMIT))
@pytest.mark.parametrize(
    ("stage", "dtype"), [*((stage, torch.bfloat16) for stage in STAGES), ("stage1", torch.float32)]
)
def test_machine_code(architecture, stage, dtype, tmp_path):
    """Tensor-core instructions (none in IEEE float32), 16-byte asynchronous copies, no spills, within the limits."""
    from kernels.depthwise_conv2d.kernel import ACTIVATIONS
    from kernels.depthwise_conv2d.toeplitz import choose_tile

    _, size, kernel = STAGES[stage]
    tile = choose_tile(64, size, size, kernel, dtype.itemsize)
    cubin, shared = compile_for(architecture, dtype, tile, size, ACTIVATIONS["gelu"])
    path = tmp_path / "kernel.cubin"
    path.write_bytes(cubin)
    code = run_tool("nvdisasm", "-c", str(path))
    usage = run_tool("cuobjdump", "--dump-resource-usage", str(path))
    assert (re.search(rf"\b{TENSOR_CORES[architecture]}\b", code) is not None) == (dtype == torch.bfloat16)
    assert re.search(r"\bLDGSTS\.E\.BYPASS\.(LTC128B\.)?128\b", code)
    # The image too, not the packed filter alone, is copied asynchronously; 7 columns of 2 bytes cannot be.
    assert stage == "stage4" or "STS.U16" not in code
    assert re.search(r"\b(LDL|STL)\b", code) is None
    assert re.findall(r"STACK:(\d+)", usage) == ["0"]
    (registers,) = re.findall(r"REG:(\d+)", usage)
    assert int(registers) * 32 * tile.warps <= 65536
    assert shared <= SHARED_LIMIT[architecture] * 1024


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


def test_each_kernel_is_taken(monkeypatch):
    """Few taps: one kernel for all layouts; many: the tensor cores, on contiguous memory whatever the layout."""
    from kernels.depthwise_conv2d import kernel, op, toeplitz

    taken = []

    def record(name):
        def launch(source, weight, bias, output, activation):
            assert source.stride() == output.stride()
            taken.append((name, output.is_contiguous()))
            output.fill_(3)

        return launch

    class NoDevice:
        def __init__(self, _):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(torch.cuda, "device", NoDevice)
    monkeypatch.setattr(kernel, "launch", record("taps"))
    monkeypatch.setattr(toeplitz, "launch", record("toeplitz"))
    for layout in (torch.contiguous_format, torch.channels_last):
        source = torch.zeros(2, 4, 8, 8).contiguous(memory_format=layout)
        for size in (5, 7):
            output = op._cuda(source, torch.zeros(4, 1, size, size))
            assert output.stride() == source.stride()
            assert bool((output == 3).all())
    assert taken == [("taps", True), ("toeplitz", True), ("taps", False), ("toeplitz", True)]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["ieee", "tf32x3", "tf32"])
def test_precisions_on_the_gpu(problem, precision):
    from kernels.depthwise_conv2d.toeplitz import launch

    p = problem(Case(4, 64, 28, 28, 29, 29))
    source, output = p.input.cuda(), torch.empty_like(p.input, device="cuda")
    launch(source, p.weight.cuda(), p.bias.cuda(), output, p.activation, precision)
    error = (output.double().cpu() - p.expected).abs()
    assert bool((error <= p.bound * (2**13 if precision == "tf32" else 4)).all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bitwise_the_same_on_the_gpu(problem, case):
    p = problem(case, torch.bfloat16)
    arguments = [t.cuda() for t in (p.input, p.weight, p.bias)]
    assert torch.equal(depthwise_conv2d(*arguments), depthwise_conv2d(*arguments))
