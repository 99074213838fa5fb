"""The native kernels read nothing outside their tensors: each is between two pages that cannot be accessed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUARDED = """
import ctypes, itertools, mmap, random
import torch
import kernels

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)

def guarded(tensor, at_end):
    # A copy of contiguous memory, flush with the page behind it or before it.
    size = tensor.numel() * tensor.element_size()
    room = -(-size // PAGE) * PAGE
    region = mmap.mmap(-1, room + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    for page in (address, address + PAGE + room):
        assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) == 0
    offset = PAGE + (room - size if at_end else 0)
    copy = torch.frombuffer(region, dtype=tensor.dtype, count=tensor.numel(), offset=offset)
    return copy.view(tensor.shape).copy_(tensor)

def images(shape, dtype):
    # [N,C,H,W] in channels_last, plain and guarded
    n, c, h, w = shape
    plain = torch.randn(n, h, w, c).to(dtype)
    return [tensor.permute(0, 3, 1, 2) for tensor in (plain, guarded(plain, at_end))]

random.seed(0)
torch.manual_seed(0)
ops, sides, filters = torch.ops.widefield, (1, 2, 5, 7, 9, 10, 14, 15, 29), (1, 3, 5, 7, 13, 31)
for dtype, at_end, _ in itertools.product((torch.float32, torch.half, torch.bfloat16), (True, False), range(40)):
    n, c, h, w = random.choice((1, 3)), random.choice((16, 48, 80)), random.choice(sides), random.choice(sides)
    kh, kw = random.choice(filters), random.choice(filters)
    (x, fenced_x), (grad, fenced_grad) = images((n, c, h, w), dtype), images((n, c, h, w), dtype)
    filter = torch.randn(c, 1, kh, kw).to(dtype), torch.randn(c).to(dtype)
    fenced = [guarded(tensor, at_end) for tensor in filter]
    assert torch.equal(ops.depthwise_conv2d(fenced_x, *fenced, "relu"), ops.depthwise_conv2d(x, *filter, "relu"))
    found = ops.depthwise_conv2d_grad_weight_kernel(fenced_grad, fenced_x, kh, kw)
    assert torch.equal(found, ops.depthwise_conv2d_grad_weight_kernel(grad, x, kh, kw))
print("within", ops.has_cpu_kernels())
"""


@pytest.mark.parametrize("capability", ["avx2", "avx512"])
def test_every_read_lies_within(capability):
    if f" {'avx2' if capability == 'avx2' else 'avx512f'} " not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"no {capability} here")
    environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    done = subprocess.run([sys.executable, "-c", GUARDED], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "within True\n"), done.stderr[-2000:]
