"""The two branches of a training block: two calls, or one kernel where that was measured faster."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import Case
from compiled_kernels import compile_pair
from device_stand_ins import interpreted
from machine_code import SHARED_LIMIT, TENSOR_CORES
from torch.library import opcheck

from kernels import depthwise_conv2d_pair
from kernels.depthwise_conv2d import pair, tuning

ROOT = Path(__file__).parents[2]
SHAPES = ((2, 8, 9, 7), (8, 1, 7, 7), (8, 1, 5, 5))


@pytest.mark.slow  # 35 s for a kernel that is taken only where it was measured faster
def test_interpreted():
    for lines in interpreted("pair_interpreted.py").values():
        assert lines == ["every_case 7", "what_is_not_finite 2"]


@pytest.mark.parametrize("architecture", sorted(SHARED_LIMIT))
@pytest.mark.parametrize(("size", "kernel_size", "ones"), [(56, 31, ()), (14, 27, ("N", "C"))])
def test_machine_code(architecture, size, kernel_size, ones, tmp_path):
    """No spills, within the limits; an argument of 1 is a constant to the just-in-time compiler."""
    from kernels.depthwise_conv2d.toeplitz import choose_tile

    tile = choose_tile(64, size, size, kernel_size, 2)
    code = compile_pair(architecture, torch.bfloat16, tile, size, tmp_path, ones=ones)
    code.check(architecture, tile.warps)
    assert code.has(TENSOR_CORES[architecture])


@pytest.mark.parametrize("fused", [False, True])
def test_outputs_and_gradients_are_those_of_two_convolutions(fused):
    arguments = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in SHAPES]
    x, w, s = arguments
    plain = (F.conv2d(x, w, padding=3, groups=8), F.conv2d(x, s, padding=2, groups=8))
    outputs = depthwise_conv2d_pair(*arguments, fused=fused)
    torch.testing.assert_close(outputs, plain)
    grads = [torch.autograd.grad((a * a.detach() + 2 * b).sum(), arguments) for a, b in (outputs, plain)]
    torch.testing.assert_close(*grads)


def test_opcheck():
    arguments = [torch.randn(shape, requires_grad=True) for shape in SHAPES]
    opcheck(torch.ops.widefield.depthwise_conv2d_pair.default, arguments)


def test_one_graph_and_autocast():
    arguments = [torch.randn(shape) for shape in SHAPES]
    for fused in (False, True):
        compiled = torch.compile(
            lambda *a, fused=fused: depthwise_conv2d_pair(*a, fused=fused), fullgraph=True, backend="aot_eager"
        )
        torch.testing.assert_close(compiled(*arguments), depthwise_conv2d_pair(*arguments))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert {o.dtype for o in depthwise_conv2d_pair(*arguments, fused=fused)} == {torch.bfloat16}


@pytest.fixture
def launched(taken, monkeypatch):
    """The tiles of the one kernel's launches; the outputs are 3 and 4."""
    from kernels.depthwise_conv2d import pair_kernel

    tiles = []

    def launch(source, weight, small_weight, output, small_output, precision, tile=None):
        assert source.is_contiguous()
        assert precision == "ieee"
        tiles.append(tile)
        output.fill_(3)
        small_output.fill_(4)

    monkeypatch.setattr(pair_kernel, "launch", launch)
    monkeypatch.setattr(pair, "_two_calls", lambda x, w, s: tiles.append("two calls") or (x, x))
    return tiles


def test_the_one_kernel_is_launched_for_many_taps_alone(launched):
    x, w, s = (torch.randn(shape) for shape in SHAPES)
    for layout in (torch.contiguous_format, torch.channels_last):
        source = x.contiguous(memory_format=layout)
        large, small = pair._cuda(source, w, s, True)
        assert large.stride() == small.stride() == source.stride()
        assert (large.unique().item(), small.unique().item()) == (3, 4)
    assert launched == [None, None]
    pair._cuda(x, s, s, True)
    pair._cuda(x.double(), w.double(), s.double(), True)
    pair._cuda(x[:0], w, s, True)
    pair._cuda(x, w, s, False)
    pair._cuda(x, w, s)  # nothing was measured
    assert launched == [None, None] + ["two calls"] * 5


@pytest.mark.parametrize("one_kernel", [True, False])
def test_what_is_measured_faster_is_taken(launched, monkeypatch, one_kernel):
    import triton

    def do_bench(run, **_):
        run()
        return 1.0 if (launched[-1] == "two calls") != one_kernel else 2.0

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    monkeypatch.setattr(tuning, "one_call_ms", lambda run: 1.0)
    monkeypatch.setenv("WIDEFIELD_AUTOTUNE", "1")
    arguments = [torch.randn(shape) for shape in SHAPES]
    pair._cuda(*arguments)
    timed = launched[:-1]
    assert "two calls" in timed
    assert len(set(timed)) == len(timed) > 2
    chosen = launched[-1]
    assert (chosen != "two calls") == one_kernel
    tuning.read.cache_clear()  # as a new process, which does not tune
    monkeypatch.delenv("WIDEFIELD_AUTOTUNE")
    pair._cuda(*arguments)
    assert launched[len(timed) :] == [chosen] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [(56, 31), (28, 29), (14, 27), (7, 13), (57, 9)])
def test_both_outputs_on_the_gpu(problem, dtype, size):
    """Within the bound of float64, the same bits twice, and gradients of two calls."""
    p = problem(Case(9, 16, size[0], size[0], size[1], size[1]), dtype, bias=False, device="cuda")
    small = problem(Case(9, 16, size[0], size[0], 5, 5), dtype, bias=False, device="cuda")
    arguments = [t.requires_grad_() for t in (p.input, p.weight, small.weight)]
    again, outputs = (depthwise_conv2d_pair(*arguments, fused=True) for _ in range(2))
    assert torch.equal(p.input, small.input)
    p.check(outputs[0].detach())
    small.check(outputs[1].detach())
    assert all(torch.equal(a, b) for a, b in zip(again, outputs, strict=True))
    two = depthwise_conv2d_pair(*arguments, fused=False)
    grads = [torch.autograd.grad((a * a.detach()).sum() + b.sum(), arguments) for a, b in (outputs, two)]
    torch.testing.assert_close(*grads, rtol=2e-2, atol=2e-2)


def test_a_small_filter_that_does_not_fit_is_named():
    x, w, s = (torch.randn(shape) for shape in SHAPES)
    with pytest.raises(ValueError, match="small_weight is 7 x 7, weight 5 x 5"):
        depthwise_conv2d_pair(x, s, w, fused=True)
