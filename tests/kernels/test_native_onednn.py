"""What the native library leaves to oneDNN is convolved in channels_last, whatever layout comes in.

In NCHW oneDNN has no depthwise kernel for large filters: it takes about 40 times as long, with the same answers.
"""

import os
import re
import subprocess
import sys

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
CONVOLUTION = re.compile(r"^onednn_verbose,.*exec,cpu,convolution,.*$", re.MULTILINE)


def convolutions(program: str) -> list[str]:
    """Return oneDNN's log line of each convolution that it computes for `program`."""
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
