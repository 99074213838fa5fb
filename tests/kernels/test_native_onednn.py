"""What the native library leaves to oneDNN is convolved in channels_last, whatever layout comes in.

In NCHW oneDNN has no depthwise kernel for large filters: it takes about 40 times as long, with the same answers.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import native_library

PROGRAM = """
import torch
from kernels import native_library
assert native_library() is not None
for dtype in (torch.float32, torch.bfloat16):
    for layout in (torch.contiguous_format, torch.channels_last):
        x, w = torch.randn(2, 20, 20, 18, dtype=dtype), torch.randn(20, 1, 9, 9, dtype=dtype)
        torch.ops.widefield.depthwise_conv2d(x.contiguous(memory_format=layout), w)
"""
LAYER = """
import torch
from kernels import native_library
assert native_library() is not None
x = torch.randn(1, 64, {size}, {size}, dtype=torch.{dtype}).contiguous(memory_format=torch.channels_last)
torch.ops.widefield.depthwise_conv2d(x, torch.randn(64, 1, {k}, {k}, dtype=torch.{dtype}), None, "relu")
"""
CONVOLUTION = re.compile(r"^onednn_verbose,.*exec,cpu,convolution,.*$", re.MULTILINE)
FLAGS = Path("/proc/cpuinfo").read_text()


def convolutions(program: str) -> list[str]:
    """What oneDNN says of each convolution that it computes for `program`."""
    assert native_library() is not None, "make native first"
    verbose = {**os.environ, "ONEDNN_VERBOSE": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=verbose, capture_output=True, text=True, check=True)
    return CONVOLUTION.findall(done.stdout)


def test_onednn_is_given_channels_last():
    lines = convolutions(PROGRAM)
    assert len(lines) == 4, lines
    for line in lines:
        assert re.search(r"src:\w+::blocked:acdb:", line), line
        assert re.search(r"dst:\w+::blocked:acdb:", line), line


@pytest.mark.parametrize(
    ("size", "k", "dtype", "fused"),
    [(184, 5, "bfloat16", True), (64, 5, "bfloat16", False), (184, 7, "bfloat16", False), (184, 5, "float32", False)],
)
def test_large_layers_of_few_taps_in_bfloat16_are_onednns_with_their_activation(size, k, dtype, fused):
    if "avx512_bf16" not in FLAGS:
        pytest.skip("this processor has no instructions for bfloat16")
    lines = convolutions(LAYER.format(size=size, k=k, dtype=dtype))
    assert [("eltwise_relu" in line) for line in lines] == [True] * fused, lines
