"""channels_last to contiguous and back: through the interpreter, and as machine code of every architecture."""

import pytest
import torch
from compiled_kernels import POINTER
from device_stand_ins import interpreted
from machine_code import SHARED_LIMIT, machine_code

from kernels import depthwise_conv2d


def test_interpreted():
    assert set(map(tuple, interpreted("transpose_interpreted.py").values())) == {("6",)}


@pytest.mark.parametrize(
    ("architecture", "dtype"), [*((architecture, torch.bfloat16) for architecture in SHARED_LIMIT), (90, torch.float32)]
)
def test_machine_code(architecture, dtype, tmp_path):
    """Squares pass through shared memory; where their sides are multiples of 16, in vectors either way."""
    from kernels.depthwise_conv2d.transpose import BLOCK, transpose_kernel

    pointers = {"source_ptr": POINTER[dtype], "target_ptr": POINTER[dtype]}
    aligned = ("rows", "columns")
    code = machine_code(transpose_kernel, architecture, pointers, {"BLOCK": BLOCK}, 4, 1, tmp_path, aligned)
    code.check(architecture, 4)
    assert code.shared >= BLOCK * BLOCK * dtype.itemsize
    assert code.has("LDG.E.128")
    assert code.has("STG.E.128")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [(64, 128, 56, 56), (5, 512, 14, 14), (3, 70, 7, 7), (2, 3, 9, 7)])
def test_on_a_gpu(shape, dtype):
    from kernels.depthwise_conv2d import transpose

    plain = torch.randn(shape, device="cuda").to(dtype)
    last = plain.contiguous(memory_format=torch.channels_last)
    assert torch.equal(transpose.contiguous(last), plain)
    back = transpose.restore_format(plain, last)
    assert back.stride() == last.stride()
    assert torch.equal(back, plain)
    weight = torch.randn(shape[1], 1, 7, 7, device="cuda").to(dtype)
    torch.testing.assert_close(depthwise_conv2d(last, weight), depthwise_conv2d(plain, weight))
