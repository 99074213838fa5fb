"""The Triton-language kernel: every type and option through the interpreter, compiled where there is a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import CASES, Case
from device_stand_ins import interpreted

from kernels import depthwise_conv2d

ROOT = Path(__file__).parents[2]
NATIVE_GPU = ROOT / "tests/kernels/native_gpu.py"
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_interpreted():
    for lines in interpreted("interpreted.py").values():
        assert "12 problems right" in "\n".join(lines)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [*CASES, Case(65, 64, 28, 28, 29, 29)], ids=str)
def test_compiled_on_the_gpu(problem, case, dtype, layout):
    p = problem(case, dtype, "gelu", device="cuda")
    source = p.input.contiguous(memory_format=layout)
    output = depthwise_conv2d(source, p.weight, p.bias, "gelu")
    p.check(output)
    assert output.stride() == torch.empty_like(source).stride()
    assert torch.equal(output, depthwise_conv2d(source, p.weight, p.bias, "gelu"))


def run_with_the_library(*program):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{NATIVE_GPU.parent}"}
    library = ROOT / "kernels/native/lib/libwidefield.so"
    return subprocess.run([sys.executable, *program, str(library)], env=environment, capture_output=True, text=True)


def test_the_native_cubins_are_not_replaced_by_python_s():
    code = "import sys, native_gpu as it; it.torch.ops.load_library(sys.argv[1]); it.check_alone(); print('alone')"
    done = run_with_the_library("-c", code)
    assert done.stdout == "alone\n", done.stderr


@gpu
@pytest.mark.gpu
def test_native_cubins_on_the_gpu():
    """A process with the library alone: the ahead-of-time path of every type, layout and activation, on two streams."""
    done = run_with_the_library(str(NATIVE_GPU))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "problems right" in done.stdout
    assert "no kernel is compiled" not in done.stderr


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_gradients_on_the_gpu(activation):
    shapes = ((2, 8, 9, 7), (8, 1, 5, 3), (8,))
    here = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    there = [t.detach().float().cuda().requires_grad_() for t in here]
    for arguments in (here, there):
        depthwise_conv2d(*arguments, activation).square().sum().backward()
    for a, b in zip(here, there, strict=True):
        torch.testing.assert_close(b.grad.double().cpu(), a.grad, rtol=1e-3, atol=1e-3)
