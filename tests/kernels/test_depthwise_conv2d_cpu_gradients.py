"""The gradients on the CPU: our kernels where they apply, else PyTorch's convolution."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import Case
from gradient_cases import random_arguments, run, shares_of_the_bound

from kernels import depthwise_conv2d, native_library
from kernels.depthwise_conv2d import pytorch

ROOT = Path(__file__).parents[2]
KERNELS = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def native():
    assert native_library() is not None, "make native first"


def grad_weight(grad, input, size):
    return torch.ops.widefield.depthwise_conv2d_grad_weight(grad, input, list(size))


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
@pytest.mark.parametrize(
    "case",
    [
        Case(2, 32, 20, 17, 13, 13),
        Case(3, 48, 7, 7, 13, 13),  # K > H
        Case(5, 16, 14, 14, 27, 27),
        Case(2, 16, 12, 10, 31, 5),
        Case(2, 16, 12, 10, 5, 31),
        Case(1, 16, 1, 1, 3, 3),
        Case(1, 16, 40, 3, 9, 1),
        Case(70, 16, 5, 6, 7, 7),  # more images than parts of the batch
        Case(1, 80, 9, 21, 51, 51),
        *(Case(2, c, 12, 12, 13, 13) for c in (17, 24)),  # no whole blocks of channels: by PyTorch
        *(Case(2, 16, 9, 8, k, k) for k in range(1, 31, 2)),  # every width of a tile
        *(Case(2, 1, 13, 6, k, 3) for k in (25, 31)),  # one channel: oneDNN's own gradient ends the process
        Case(3, 1, 13, 15, 31, 13),
    ],
    ids=str,
)
def test_within_the_bound_of_float64(case, dtype):
    arguments = random_arguments(case, dtype, "cpu", torch.channels_last)
    answers = run(depthwise_conv2d, *arguments)
    shares = shares_of_the_bound(answers, arguments)
    assert max(shares.values()) <= 1, shares
    assert all(answer.dtype == dtype for answer in answers.values())


@pytest.mark.parametrize("case", [Case(4, 32, 56, 56, 31, 31), Case(1, 16, 150, 150, 5, 5)], ids=str)
def test_no_worse_than_pytorch(case):
    """The largest error is at most 1.1 times that of PyTorch's own gradient."""
    input, weight, _, grad = random_arguments(case, torch.float32, "cpu", torch.channels_last)
    size = tuple(weight.shape[2:])
    expected = pytorch.grad_weight(grad.double(), input.double(), size)
    ours, theirs = grad_weight(grad, input, size), pytorch.grad_weight(grad, input, size)
    assert (ours - expected).abs().max() <= 1.1 * (theirs - expected).abs().max()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_thread_count_changes_no_bit(threads):
    input, weight, _, grad = random_arguments(Case(9, 48, 20, 20, 13, 13), torch.float32, "cpu", torch.channels_last)
    before, size = torch.get_num_threads(), weight.shape[2:]
    expected = grad_weight(grad, input, size)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(grad_weight(grad, input, size), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("row", [0, 1, 7, 16, 19])
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (13, 13), (31, 31)], ids=str)
def test_a_nan_in_the_input_reaches_the_taps_that_see_it(kernel, row):
    x = torch.randn(2, 16, 20, 14)
    x[1, 3, row, 12] = float("nan")
    found = grad_weight(channels_last(torch.randn(2, 16, 20, 14)), channels_last(x), kernel)
    # Tap (ky, kx) sees it from output row `row + up - ky` and column `12 + left - kx`, where there are such.
    up, left = kernel[0] // 2, kernel[1] // 2
    rows = [0 <= row + up - ky < 20 for ky in range(kernel[0])]
    columns = [0 <= 12 + left - kx < 14 for kx in range(kernel[1])]
    expected = torch.zeros(found.shape, dtype=torch.bool)
    expected[3, 0] = torch.tensor(rows)[:, None] & torch.tensor(columns)
    assert torch.equal(found.isnan(), expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("channels", "dtype", "native"),
    [
        (32, torch.float32, True),
        (32, torch.bfloat16, True),
        (32, torch.float16, True),
        (20, torch.float32, False),
        (32, torch.float64, False),
    ],
)
def test_paths(channels, dtype, native, layout):
    x = torch.randn(2, channels, 9, 8, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    w = torch.randn(channels, 1, 5, 5, dtype=dtype, requires_grad=True)
    loss = depthwise_conv2d(x, w).square().sum()
    with torch.profiler.profile() as profile:
        loss.backward()
    names = {event.name for event in profile.events()}
    assert ("widefield::depthwise_conv2d_grad_weight_kernel" in names) == (native and KERNELS), names
    assert ("aten::convolution_backward" in names) != (native and KERNELS), names
    assert x.grad.stride() == x.stride()
    assert w.grad.is_contiguous()


@pytest.mark.parametrize("size", [(5, 5), (1, 5), (3, 1)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_the_filters_gradient_has_its_strides(layout, size):
    """Also that of the axis of size 1, in which the layouts differ: DistributedDataParallel compares them."""
    x, w = torch.randn(1, 16, 9, 9), torch.randn(16, 1, *size).to(memory_format=layout).requires_grad_()
    outputs = depthwise_conv2d(x, w), F.conv2d(x, w, padding=(size[0] // 2, size[1] // 2), groups=16)
    ours, theirs = (torch.autograd.grad(output.square().sum(), w)[0] for output in outputs)
    assert ours.stride() == w.stride()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [16, 1])
def test_an_empty_batch_has_a_gradient_of_zero(channels):
    x = torch.empty(0, channels, 8, 8, requires_grad=True)
    w = torch.randn(channels, 1, 5, 5, requires_grad=True)
    depthwise_conv2d(x, w).sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(w.grad, torch.zeros_like(w))


def test_autocast_trains_as_convolution_does():
    x, w = torch.randn(4, 16, 12, 12), torch.randn(16, 1, 7, 7)
    found = []
    for convolve in (depthwise_conv2d, lambda x, w: F.conv2d(x, w, padding=3, groups=16)):
        weight = w.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            convolve(x, weight).float().square().sum().backward()
        found.append(weight.grad)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=0.02 * float(found[1].abs().max()))


@pytest.mark.skipif(not KERNELS, reason="neither AVX2 nor AVX-512 here")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, x: (g[:1], x), "differ in size 0"),
        (lambda g, x: (g.bfloat16(), x), "differ in dtype"),
        (lambda g, x: (g.contiguous(), x), "channels_last"),
        (lambda g, x: (channels_last(g[:, :8]), channels_last(x[:, :8])), "multiple of 16"),
        (lambda g, x: (g.double(), x.double()), "float32, float16 or bfloat16"),
        (lambda g, x: (g[0], x[0]), "4 dimensions"),
    ],
)
def test_the_native_operator_checks_its_arguments(change, message):
    arguments = change(*(channels_last(torch.randn(2, 16, 6, 5)) for _ in range(2)))
    with pytest.raises(RuntimeError, match=message):
        torch.ops.widefield.depthwise_conv2d_grad_weight_kernel(*arguments, 3, 3)
    with pytest.raises(RuntimeError, match="odd"):
        torch.ops.widefield.depthwise_conv2d_grad_weight_kernel(*[channels_last(torch.randn(2, 16, 6, 5))] * 2, 4, 3)


BACKWARD_UNDER_AUTOCAST = """
import torch
from kernels import depthwise_conv2d
for channels in 16, 1:  # the filter's gradient of one channel is a convolution by PyTorch
    x, w = (torch.randn(shape, requires_grad=True) for shape in ((2, channels, 9, 9), (channels, 1, 5, 5)))
    b = torch.randn(channels)
    plain = torch.nn.functional.gelu(torch.nn.functional.conv2d(x, w, b, padding=2, groups=channels))
    expected = torch.autograd.grad(plain.sum(), (x, w))
    for call in depthwise_conv2d, torch.compile(depthwise_conv2d, backend="aot_eager", fullgraph=True):
        output = call(x, w, b, "gelu")
        with torch.autocast("cpu", torch.bfloat16):
            found = torch.autograd.grad(output.sum(), (x, w))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
"""


def test_autocast_around_backward_alone_changes_nothing():
    exec(BACKWARD_UNDER_AUTOCAST, {})


def test_nor_without_the_native_library():
    environment = os.environ | {"WIDEFIELD_NATIVE": "0"}
    command = [sys.executable, "-c", BACKWARD_UNDER_AUTOCAST]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
