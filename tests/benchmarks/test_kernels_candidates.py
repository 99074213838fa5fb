"""Every implementation of the layer gives the layer's answer, and the check of the answers finds what is wrong."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from benchmarks.kernels import candidates as c
from benchmarks.kernels.accuracy import EPS, Reference, Tensors
from benchmarks.kernels.layers import PASSES, Layer
from kernels.depthwise_conv2d.reference import depthwise_conv2d_reference

LAYER = Layer(3, 4, 7, 9, "float32")


def tensors(layer=LAYER, seed=0):
    torch.manual_seed(seed)
    image = (layer.batch, layer.channels, layer.size, layer.size)
    weight = torch.randn(layer.channels, 1, layer.kernel, layer.kernel)
    return Tensors(*(t.to(layer.torch_dtype) for t in (torch.randn(image), weight, torch.randn(image))))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_candidates_agree_with_float64_in_every_pass(dtype):
    sets = [tensors(Layer(3, 4, 7, 9, dtype), seed) for seed in range(2)]
    references = [Reference(each) for each in sets]
    ways = list(c.candidates())
    assert len({way.name for way in ways}) == len(ways)
    if not hasattr(torch.backends.cudnn, "depthwise_kernel"):  # there cuDNN is an operator of its own, of GPUs alone
        ways = [way for way in ways if not way.name.startswith("cudnn")]
    for way in ways:
        assert way.suits(LAYER)
        for which in way.passes:
            calls = c.steps(way, which, sets)
            errors = [reference.error(which, call()) for reference, call in zip(references, calls, strict=True)]
            assert max(errors) <= 1, (way.name, which)
            first, second = (calls[0]().clone() for _ in range(2))  # a call can be repeated
            assert torch.equal(first, second)


@pytest.mark.usefixtures("quick")
def test_what_each_pytorch_offers(monkeypatch):
    choice = SimpleNamespace(benchmark=False, depthwise_kernel="auto")
    monkeypatch.setattr(torch.backends, "cudnn", choice)
    ways = {way.name: way for way in c.candidates()}
    assert {"depthwise_kernel=cudnn nchw", "depthwise_kernel=native channels_last benchmark"} <= ways.keys()
    assert "cudnn nchw" not in ways
    with ways["depthwise_kernel=cudnn nchw benchmark"].settings():
        assert choice == SimpleNamespace(benchmark=True, depthwise_kernel="cudnn")
    assert choice == SimpleNamespace(benchmark=False, depthwise_kernel="auto")

    older = SimpleNamespace(benchmark=False)
    monkeypatch.setattr(torch.backends, "cudnn", older)
    ways = {way.name: way for way in c.candidates(compiled=False)}
    assert ways["cudnn nchw"].passes == ("forward",)
    assert not [name for name in ways if "depthwise_kernel" in name or "compile" in name]
    with ways["cudnn channels_last benchmark"].settings():
        assert older.benchmark


def test_cudnn_directly_asks_for_this_convolution(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.ops.aten, "cudnn_convolution", lambda *arguments: seen.append(arguments[2:]))
    with c.cudnn_settings(benchmark=True):
        c.cudnn_directly(torch.zeros(1, 4, 7, 7), torch.zeros(4, 1, 9, 9))
    assert seen == [([4, 4], [1, 1], [1, 1], 4, True, False, False)]


def test_settings_are_put_back_after_a_failure(monkeypatch):
    backend = SimpleNamespace(benchmark=False)
    monkeypatch.setattr(torch.backends, "cudnn", backend)
    with pytest.raises(ZeroDivisionError), c.cudnn_settings(benchmark=True):
        raise ZeroDivisionError
    assert not backend.benchmark


def test_layouts_and_which_tensor_requires_a_gradient():
    seen = []

    def spy(input, weight):
        seen.append((input.is_contiguous(memory_format=torch.channels_last), input.requires_grad, weight.requires_grad))
        return c.convolution(input, weight)

    way = c.Candidate("spy", spy, layout=torch.channels_last, settings=nullcontext)
    for which in PASSES:
        [call] = c.steps(way, which, [tensors()])
        call()
    assert seen == [(True, False, False), (True, True, False), (True, False, True)]


@pytest.mark.parametrize(("size", "kernel"), [(7, 13), (5, 3), (6, 31)])
def test_the_toeplitz_matrix_is_the_convolution(size, kernel):
    each = tensors(Layer(2, 3, size, kernel, "float32"))
    matrix = c.toeplitz_matrix(each.weight.double(), size)
    assert matrix.shape == (3, size**2, size**2)
    expected = depthwise_conv2d_reference(each.input.double(), each.weight.double(), None, "none")
    torch.testing.assert_close(c.toeplitz_bmm(each.input.double(), matrix), expected, rtol=0, atol=1e-12)


def test_large_images_and_small_filters_get_no_toeplitz_matrix():
    (way,) = (way for way in c.candidates(compiled=False) if way.name == "toeplitz bmm")
    assert [way.suits(Layer(1, 1, size, kernel)) for size, kernel in ((14, 27), (28, 29), (7, 5))] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("which", PASSES)
def test_a_wrong_answer_is_found(which):
    each = tensors()
    reference = Reference(each)
    answer = reference.expected[which]
    assert reference.error(which, answer) == 0
    wrong = answer.clone()
    wrong.flatten()[-1] += 1.5 * reference.bound[which].flatten()[-1]
    assert reference.error(which, wrong) == pytest.approx(1.5)
    wrong.flatten()[0] = float("nan")
    assert reference.error(which, wrong) == float("inf")
    assert reference.error(which, answer[:-1]) == float("inf")


def test_bounds_are_of_each_types_own_rounding():
    assert {dtype: torch.finfo(dtype).eps for dtype in EPS} == EPS


def test_the_reference_is_the_projects_specification():
    each = tensors()
    expected = depthwise_conv2d_reference(each.input.double(), each.weight.double(), None, "none")
    torch.testing.assert_close(Reference(each).expected["forward"], expected, rtol=0, atol=1e-12)
