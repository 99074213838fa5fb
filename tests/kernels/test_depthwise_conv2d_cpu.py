"""The operator on the CPU: as Python registers it and as the native library does."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import CASES, Case
from torch.library import opcheck

from kernels import depthwise_conv2d, native_library
from kernels.depthwise_conv2d import op, pytorch
from kernels.depthwise_conv2d.reference import depthwise_conv2d_reference

ROOT = Path(__file__).parents[2]
IMPLEMENTATIONS = {"python": op._cpu, "native": lambda *a: torch.ops.widefield.depthwise_conv2d(*a)}


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def implementation(request):
    if request.param == "native":
        assert native_library() is not None, "make native first"
    return IMPLEMENTATIONS[request.param]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_the_bound_of_float64(implementation, problem, case, dtype, layout):
    p = problem(case, dtype, "relu")
    source = p.input.contiguous(memory_format=layout)
    output = implementation(source, p.weight, p.bias, "relu")
    p.check(output)
    assert output.stride() == torch.empty_like(source).stride()


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", [CASES[0], CASES[3], CASES[7]], ids=["whole-row", "narrow", "onednn"])
def test_bias_and_activation(implementation, problem, case, bias, activation):
    p = problem(case, activation=activation, bias=bias)
    p.check(implementation(p.input.contiguous(memory_format=torch.channels_last), p.weight, p.bias, activation))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", range(5, 17))
@pytest.mark.parametrize("narrower", [0, 2], ids=["whole-row", "less"])
def test_widths_around_the_whole_row_tile(problem, width, narrower, dtype):
    """The native kernel takes a tile of whole rows where the filter spans the image, from 7 to 14 columns."""
    case = Case(2, 32, 9, width, 11, max(9, 2 * width - 1 - narrower))
    p = problem(case, dtype, activation="relu")
    source = p.input.contiguous(memory_format=torch.channels_last)
    p.check(torch.ops.widefield.depthwise_conv2d(source, p.weight, p.bias, "relu"))


@pytest.mark.parametrize(
    "case",
    [
        Case(9, 80, 13, 11, 7, 7),  # five blocks: one group is not full
        Case(2, 80, 33, 30, 3, 3),
        Case(8, 80, 30, 29, 5, 5),  # an output that goes past the caches
        Case(1, 48, 6, 9, 9, 1),
        Case(1, 48, 6, 9, 1, 9),
        Case(8, 80, 30, 29, 9, 9),
        Case(1, 16, 3, 40, 5, 7),
        Case(1, 16, 1, 9, 7, 5),
        Case(1, 16, 41, 8, 7, 3),  # rows in several parts
    ],
    ids=str,
)
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_narrow_filters_and_groups_of_blocks(problem, case, dtype, activation):
    p = problem(case, dtype, activation)
    source = p.input.contiguous(memory_format=torch.channels_last)
    p.check(torch.ops.widefield.depthwise_conv2d(source, p.weight, p.bias, activation))


def test_gelu_over_its_range():
    """GELU of single values, also beyond the range of its polynomials."""
    values = torch.linspace(-12, 12, 1 << 16)
    values[:6] = torch.tensor([math.nan, math.inf, -math.inf, -1e6, 1e6, 0.0])
    x = values.reshape(1, 16, 64, 64).contiguous(memory_format=torch.channels_last)
    pick = torch.zeros(16, 1, 3, 3)
    pick[:, :, 1, 1] = 1
    spaced = F.conv_transpose2d(x, pick[:, :, 1:2, 1:2], stride=2, groups=16)  # no two in a window
    output = depthwise_conv2d(spaced, pick, None, "gelu")[:, :, ::2, ::2].flatten()
    expected = F.gelu(values.double())
    near = 4 * torch.finfo(torch.float32).eps * values.abs()
    ends = torch.tensor([math.nan, math.inf, math.nan, 0.0, 1e6, 0.0])
    torch.testing.assert_close(output[:6], ends, rtol=0, atol=0, equal_nan=True)
    assert ((output.double() - expected).abs() <= near)[6:].all()


def test_no_worse_than_pytorch(problem):
    """The native kernel's largest error is at most 1.1 times that of PyTorch's own convolution."""
    p = problem(Case(2, 64, 28, 28, 29, 29), bias=True)
    ours = (depthwise_conv2d(p.input, p.weight, p.bias).double() - p.expected).abs().max()
    theirs = F.conv2d(p.input, p.weight, p.bias, padding=14, groups=64).double()
    assert ours <= 1.1 * (theirs - p.expected).abs().max()


def test_non_contiguous_arguments(implementation, problem):
    p = problem(CASES[2])
    strided = torch.empty(2, 32, 20, 22).copy_(p.input.repeat_interleave(2, dim=3))[:, :, :, ::2]
    transposed = p.input.transpose(2, 3).contiguous().transpose(2, 3)
    weight = p.weight.transpose(2, 3).contiguous().transpose(2, 3)
    bias = torch.stack([p.bias, p.bias], dim=1)[:, 0]
    for source in (strided, transposed):
        assert not source.is_contiguous()
        output = implementation(source, weight, bias, "none")
        p.check(output)
        assert output.is_contiguous()


def test_the_channels_last_path_is_taken_whatever_comes_in(monkeypatch):
    """In NCHW oneDNN is 40 times slower: what reaches the convolution must be channels_last."""
    seen = []
    real = pytorch.convolution

    def spy(input, weight, bias):
        seen.append(input.is_contiguous(memory_format=torch.channels_last))
        return real(input, weight, bias)

    monkeypatch.setattr(pytorch, "convolution", spy)
    op._cpu(torch.randn(2, 8, 9, 9), torch.randn(8, 1, 5, 5))
    assert seen == [True]


def test_float16_is_summed_in_float32_without_our_kernels():
    x, w, bias = torch.randn(2, 8, 19, 19).half(), torch.randn(8, 1, 5, 5).half(), torch.randn(8).half()
    expected = F.gelu(F.conv2d(x.float(), w.float(), bias.float(), padding=2, groups=8)).half()
    for convolve in (op._cpu, torch.ops.widefield.depthwise_conv2d):  # 8 channels: no whole block
        found = convolve(x, w, bias, "gelu")
        assert found.dtype == torch.float16
        torch.testing.assert_close(found, expected, rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("channels", "kernel", "expected"), [(16, 13, False), (16, 3, False), (16, 1, True), (20, 5, True)]
)
def test_native_paths(channels, kernel, expected, dtype):
    """Whole blocks of 16 channels take our kernels, where the processor runs them; the rest oneDNN."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("neither AVX2 nor AVX-512 here: oneDNN serves every filter")
    x, w = torch.randn(16, channels, 32, 32, dtype=dtype), torch.randn(channels, 1, kernel, kernel, dtype=dtype)
    with torch.profiler.profile(record_shapes=True) as profile:
        torch.ops.widefield.depthwise_conv2d(x, w)
    names = {event.name for event in profile.events()}
    assert any("convolution" in name and "depthwise" not in name for name in names) == expected, names
    assert "aten::_slow_conv2d_forward" not in names  # which is PyTorch's of float16, on most processors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rounded_once_as_pytorch_rounds(dtype):
    """With an identity filter and a bias only rounding is tested: every scale, ties, infinity and NaN."""
    x = (torch.randn(4, 64, 8, 9) * torch.logspace(-9, 3, 64).view(64, 1, 1)).to(dtype)
    w, bias = torch.zeros(64, 1, 3, 3, dtype=dtype), x[0, :, 0, 0] * 0.5 ** torch.arange(64)
    w[:, :, 1, 1] = 1
    bias[:3] = torch.tensor([float("inf"), -float("inf"), float("nan")])
    bias = bias.to(dtype)
    expected = (x.float() + bias.float().view(64, 1, 1)).to(dtype)
    found = torch.ops.widefield.depthwise_conv2d(x.contiguous(memory_format=torch.channels_last), w, bias)
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert found[:, 2].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_thread_count_changes_no_bit(problem, threads, dtype):
    p = problem(Case(1, 32, 56, 56, 31, 31), dtype)
    before = torch.get_num_threads()
    expected = depthwise_conv2d(p.input, p.weight, p.bias)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(depthwise_conv2d(p.input, p.weight, p.bias), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (5, 5), (13, 13), (11, 39), (1, 9)], ids=str)
@pytest.mark.parametrize("row", [0, 1, 9, 10, 19])
def test_nan_stays_local(implementation, row, kernel, dtype):
    """At every position in the pairs of rows of the bfloat16 kernel, and through ReLU."""
    x = torch.randn(1, 16, 20, 14, dtype=dtype).contiguous(memory_format=torch.channels_last)
    x[0, 3, row, 12] = float("nan")
    found = implementation(x, torch.randn(16, 1, *kernel, dtype=dtype), None, "relu").isnan()
    expected = torch.zeros(found.shape, dtype=torch.bool)
    up, left = kernel[0] // 2, kernel[1] // 2
    expected[0, 3, max(0, row - up) : row + up + 1, max(0, 12 - left) : 12 + left + 1] = True
    assert torch.equal(found, expected)


def test_empty_batch(implementation):
    output = implementation(torch.empty(0, 16, 8, 8), torch.randn(16, 1, 13, 13), None, "none")
    assert output.shape == (0, 16, 8, 8)


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_gradients(activation):
    arguments = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 8, 6, 5), (8, 1, 5, 3), (8,))]
    assert torch.autograd.gradcheck(lambda *a: depthwise_conv2d(*a, activation), arguments)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_opcheck(activation, layout):
    x = torch.randn(2, 16, 6, 5).contiguous(memory_format=layout).requires_grad_()
    w, b = torch.randn(16, 1, 13, 3, requires_grad=True), torch.randn(16, requires_grad=True)
    opcheck(torch.ops.widefield.depthwise_conv2d.default, (x, w, b, activation))
    opcheck(torch.ops.widefield.depthwise_conv2d.default, (x.detach(), w.detach()))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_a_filter_s_gradient_lies_as_the_filter_does(layout, autocast):
    """Except for sides of 1: CUDA's fused optimisers refuse another layout; the CPU's accept it."""
    x = torch.randn(2, 8, 9, 7).contiguous(memory_format=layout)
    filters = [torch.randn(8, 1, *size).to(memory_format=layout).requires_grad_() for size in ((13, 7), (5, 3), (1, 1))]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = [depthwise_conv2d(x, w) for w in filters]
        sum(output.square().sum() for output in outputs).backward()
    for weight in filters:
        sides = zip(weight.shape, weight.stride(), weight.grad.stride(), strict=True)
        assert all(stride == its for size, stride, its in sides if size > 1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_opcheck_of_the_gradients(layout):
    grad, x = (torch.randn(2, 16, 6, 5).contiguous(memory_format=layout).requires_grad_() for _ in range(2))
    ops = torch.ops.widefield
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")  # their own gradients are an error
    opcheck(ops.depthwise_conv2d_before_activation.default, (grad, torch.randn(16, 1, 13, 3), None), test_utils=tests)
    opcheck(ops.depthwise_conv2d_grad_input.default, (grad, torch.randn(16, 1, 13, 3)), test_utils=tests)
    opcheck(ops.depthwise_conv2d_grad_weight.default, (grad, x, [13, 3]), test_utils=tests)


def test_relu_gradient_where_the_output_is_no_number():
    """The gradient is PyTorch's: a diverged output shows in the gradient too."""
    input = torch.zeros(1, 1, 3, 3)
    input[0, 0, 0, 0] = float("nan")
    weights = [torch.ones(1, 1, 3, 3, requires_grad=True) for _ in range(2)]
    depthwise_conv2d(input, weights[0], None, "relu").sum().backward()
    torch.relu(torch.nn.functional.conv2d(input, weights[1], padding=1)).sum().backward()
    torch.testing.assert_close(weights[0].grad, weights[1].grad, equal_nan=True)


@pytest.mark.parametrize("with_respect_to", [0, 1])
def test_double_backward_is_an_error(with_respect_to):
    x, w = torch.randn(1, 4, 6, 6, requires_grad=True), torch.randn(4, 1, 5, 5, requires_grad=True)
    loss = depthwise_conv2d(x, w).square().sum()
    (grad,) = torch.autograd.grad(loss, (x, w)[with_respect_to], create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        grad.sum().backward()


def test_autocast_computes_as_convolution_does():
    x, w = torch.randn(1, 8, 9, 9), torch.randn(8, 1, 7, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = depthwise_conv2d(x, w)
        assert output.dtype == F.conv2d(x, w, padding=3, groups=8).dtype == torch.bfloat16
        assert depthwise_conv2d(x.double(), w.double()).dtype == torch.float64
        for image, filter in ((x.to(torch.uint8), w), (x, w.double())):
            with pytest.raises(RuntimeError):
                F.conv2d(image, filter, padding=3, groups=8)
            with pytest.raises(ValueError, match="weight is torch"):
                depthwise_conv2d(image, filter)


X, W = torch.zeros(1, 4, 5, 5), torch.zeros(4, 1, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], W), "[N,C,H,W]"),
        ((X[:, :0], W[:0]), "[1, 0, 5, 5]: at least one channel"),
        ((X[:, :, :0], W), "0, 5]: images of at least one pixel"),
        ((X, torch.zeros(3, 1, 3, 3)), "[4,1,Kh,Kw]"),
        ((X, torch.zeros(4, 2, 3, 3)), "[4,1,Kh,Kw]"),
        ((X, torch.zeros(4, 1, 4, 3)), "4 x 3"),
        ((X, W, torch.zeros(5)), "[4] is expected"),
        ((X, W, None, "swish"), "swish"),
        ((X, W.double()), "float64"),
        ((X, W, torch.zeros(4).half()), "float16"),
        ((X.int(), W.int()), "int32"),
        ((X.to(torch.float8_e4m3fn), W.to(torch.float8_e4m3fn)), "input is torch.float8_e4m3fn: float32"),
        ((X.numpy(), W), "input is of type ndarray: a tensor is expected"),
        ((X, None), "weight is of type NoneType"),
        ((X, W, "relu"), "bias is of type str"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=r".") as raised:
        depthwise_conv2d(*arguments)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], W), "3 dimensions"),
        ((X[:, :0], W[:0]), "no channels"),
        ((X[:, :, :0], W), "images of 0 x 5"),
        ((X, torch.zeros(3, 1, 3, 3)), "weight does not fit"),
        ((X, torch.zeros(4, 1, 4, 3)), "4 x 3"),
        ((X, W, torch.zeros(5)), "bias does not fit"),
        ((X, W, None, "swish"), "swish"),
        ((X.int(), W.int()), "input of float32, float16, bfloat16 or float64"),
        ((X, W.double()), "differ in dtype"),
    ],
)
def test_the_native_library_checks_too(arguments, message):
    """TorchScript calls it with no Python in between."""
    with pytest.raises(RuntimeError, match=message):
        torch.ops.widefield.depthwise_conv2d(*arguments)


@pytest.mark.parametrize("implementation", [op._cpu, op._cuda])
def test_what_scripted_code_calls_checks_too(implementation):
    """A GPU would read beyond the filter."""
    with pytest.raises(ValueError, match=r"weight has shape \[2, 1, 3, 3\]: \[4,1,Kh,Kw\] is expected"):
        implementation(torch.zeros(1, 4, 3, 3), torch.zeros(2, 1, 3, 3))
    with pytest.raises(ValueError, match="the kernel is 2 x 2"):
        implementation(torch.zeros(1, 4, 3, 3), torch.zeros(4, 1, 2, 2))


def test_a_bias_that_no_gradient_needs_may_change():
    x, w, b = torch.randn(1, 4, 6, 6), torch.randn(4, 1, 5, 5), torch.zeros(4)
    for tensor in (x, w, b):
        tensor.requires_grad_()
    y = depthwise_conv2d(x, w, b)
    with torch.no_grad():
        b.add_(1)
    y.sum().backward()
    assert b.grad.tolist() == [36.0] * 4


@pytest.mark.parametrize("warns", [False, True])
def test_works_without_the_native_library(warns):
    """If it is only not built, one warning says so: training would be many times slower without a word."""
    code = (
        "import torch; from kernels import depthwise_conv2d as d; x = torch.randn(2, 4, 6, 6, requires_grad=True);"
        "[d(x, torch.randn(4, 1, 3, 3), activation='gelu').sum().backward() for _ in 'ab']; print(tuple(x.grad.shape))"
    )
    environment = {**os.environ, "WIDEFIELD_NATIVE": "0"}
    if warns:
        code = "import torch, pathlib; pathlib.Path.is_file = lambda path: False; " + code
        environment["WIDEFIELD_NATIVE"] = "1"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "(2, 4, 6, 6)", done.stderr
    assert done.stderr.count("no native library, so PyTorch computes, many times slower: python kernels/") == warns


def test_reference_is_convolution():
    x, w, b = (torch.randn(s, dtype=torch.float64) for s in ((2, 3, 8, 7), (3, 1, 5, 9), (3,)))
    torch.testing.assert_close(
        depthwise_conv2d_reference(x, w, b, "none"), F.conv2d(x, w, b, padding=(2, 4), groups=3), rtol=0, atol=1e-12
    )
