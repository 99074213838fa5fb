"""float32 as IEEE, tf32 and tf32x3, and how exact every type is: interpreted, and each architecture's machine code."""

import itertools

import pytest
import torch
from cases import Case
from compiled_kernels import STAGES, compile_forward, compile_grad_weight
from device_stand_ins import interpreted
from machine_code import SHARED_LIMIT, TENSOR_CORES

COMPILERS = ("forward", "grad_weight")
PRECISIONS = ("ieee", "tf32", "tf32x3")
SAMPLE = {  # what is new in each; the rest is slow
    ("forward", "tf32", "stage1", 80),
    ("forward", "tf32x3", "stage3", 90),
    ("grad_weight", "tf32x3", "stage1", 120),
    ("forward", "tf32", "stage3", 100),
}
EVERY = [
    pytest.param(*each, marks=() if each in SAMPLE else pytest.mark.slow, id="-".join(map(str, each)))
    for each in itertools.product(COMPILERS, PRECISIONS, STAGES, sorted(SHARED_LIMIT))
]


def test_interpreted():
    """Each product has the precision that was asked for, and the answers are within its bound and show its rounding."""
    (lines,) = interpreted("precision_interpreted.py", ("float32",)).values()
    assert [line.split()[1] for line in lines] == ["right"] * 3


@pytest.mark.parametrize(
    ("dtype", "results"),
    [("float32", 7), *(pytest.param(name, 8, marks=pytest.mark.slow) for name in ("float16", "bfloat16"))],
)
def test_errors_are_at_most_pytorchs(dtype, results):
    """The largest error of the output and of the filter's gradient, at most 1.1 times that of PyTorch's convolution."""
    (lines,) = interpreted("error_interpreted.py", (dtype,)).values()
    assert len(lines) == results
    assert [line for line in lines if not float(line.split()[-1]) <= 1.1] == []


def compile_as(what, architecture, stage, dtype, folder, precision="ieee"):
    """(machine code, warps) of the rule's tile at batch 64."""
    from kernels.depthwise_conv2d.toeplitz import choose_tile

    _, size, kernel_size = STAGES[stage]
    if what == "grad_weight":
        code, tile = compile_grad_weight(architecture, size, kernel_size, dtype, folder, precision)
        return code, tile.warps
    tile = choose_tile(64, size, size, kernel_size, dtype.itemsize)
    return compile_forward(architecture, dtype, tile, size, folder, precision=precision), tile.warps


@pytest.mark.parametrize(("what", "precision", "stage", "architecture"), EVERY)
def test_machine_code_of_float32(what, precision, stage, architecture, tmp_path):
    """IEEE takes no tensor core, the others do; no spills, registers and shared memory within the limits."""
    code, warps = compile_as(what, architecture, stage, torch.float32, tmp_path, precision)
    code.check(architecture, warps)
    assert code.has(TENSOR_CORES[architecture]) == (precision != "ieee")


@pytest.mark.slow
@pytest.mark.parametrize("what", COMPILERS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("architecture", sorted(SHARED_LIMIT))
def test_machine_code_of_float16(what, architecture, stage, tmp_path):
    code, warps = compile_as(what, architecture, stage, torch.float16, tmp_path)
    code.check(architecture, warps)
    assert code.has(TENSOR_CORES[architecture])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions_on_the_gpu(problem, precision):
    from kernels.depthwise_conv2d.toeplitz import launch

    p = problem(Case(4, 64, 28, 28, 29, 29), device="cuda")
    output = torch.empty_like(p.input)
    launch(p.input, p.weight, p.bias, output, p.activation, precision)
    error = (output.double() - p.expected).abs()
    assert bool((error <= p.bound * {"ieee": 1, "tf32x3": 4, "tf32": 2**13}[precision]).all())
