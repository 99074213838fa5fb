"""The two branches of a training block: two calls, or one kernel where it is asked for."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from compiled_kernels import compile_pair
from device_stand_ins import interpreted, no_device
from machine_code import SHARED_LIMIT, TENSOR_CORES
from torch.library import opcheck

from kernels import depthwise_conv2d_pair
from kernels.depthwise_conv2d import pair

ROOT = Path(__file__).parents[2]
SHAPES = ((2, 8, 9, 7), (8, 1, 7, 7), (8, 1, 5, 5))


@pytest.mark.slow  # 35 s for a kernel that is off
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


def test_the_way_is_chosen_in_one_place(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.ops.widefield, "depthwise_conv2d_pair", lambda *a: taken.append("fused"))
    monkeypatch.setattr(pair, "depthwise_conv2d", lambda *a: taken.append("call"))
    arguments = [torch.randn(shape) for shape in SHAPES]
    depthwise_conv2d_pair(*arguments)
    assert taken == ["call", "call"]
    monkeypatch.setattr(pair, "FUSED", True)
    depthwise_conv2d_pair(*arguments)
    assert taken == ["call", "call", "fused"]


def test_the_fused_kernel_is_launched_for_many_taps_alone(monkeypatch):
    from kernels.depthwise_conv2d import pair_kernel

    taken = []

    def launch(source, weight, small_weight, output, small_output, precision):
        assert source.is_contiguous()
        taken.append((tuple(weight.shape[2:]), precision))
        output.fill_(3)
        small_output.fill_(4)

    monkeypatch.setattr(torch.cuda, "device", no_device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    monkeypatch.setattr(pair_kernel, "launch", launch)
    x, w, s = (torch.randn(shape) for shape in SHAPES)
    for layout in (torch.contiguous_format, torch.channels_last):
        source = x.contiguous(memory_format=layout)
        large, small = pair._cuda(source, w, s)
        assert large.stride() == small.stride() == source.stride()
        assert (large.unique().item(), small.unique().item()) == (3, 4)
    assert taken == [((7, 7), "ieee")] * 2
    pair._cuda(x, s, s)
    pair._cuda(x.double(), w.double(), s.double())
    pair._cuda(x[:0], w, s)
    assert len(taken) == 2


def test_a_small_filter_that_does_not_fit_is_named():
    x, w, s = (torch.randn(shape) for shape in SHAPES)
    with pytest.raises(ValueError, match="small_weight is 7 x 7, weight 5 x 5"):
        depthwise_conv2d_pair(x, s, w, fused=True)
