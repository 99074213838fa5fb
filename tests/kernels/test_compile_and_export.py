"""The operators under torch.compile and torch.export: one graph, any batch and image, autocast."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, export

from kernels import depthwise_conv2d, masked_patch_loss

IMAGES = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
MASK = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC, 2: Dim.DYNAMIC}


class Counter:
    """A backend that computes eagerly and keeps the graphs it was given."""

    def __init__(self):
        self.graphs = []

    def __call__(self, graph, inputs):
        self.graphs.append(graph)
        return graph.forward


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 1, 7, 7))
        self.bias = nn.Parameter(torch.randn(8))

    def forward(self, x):
        return depthwise_conv2d(x, self.weight, self.bias, "relu")


PROGRAMS = {
    "scripted": lambda layer, x: torch.jit.script(layer),
    "traced": torch.jit.trace,
    "exported": lambda layer, x: export(layer, (x,)).module(),
}


class Loss(nn.Module):
    def forward(self, prediction, image, mask):
        return masked_patch_loss(prediction, image, mask, "smooth_l1", "patch")


def loss_arguments(batch=5, rows=14, columns=22):
    generator = torch.Generator().manual_seed(batch)
    prediction = torch.randn(batch, 12, rows, columns, generator=generator)
    image = torch.randn(batch, 3, 2 * rows, 2 * columns, generator=generator)
    return prediction, image, torch.rand(batch, rows // 2, columns // 2, generator=generator) < 0.6


def test_compiled_gradients_are_eager_ones():
    """Forward and backward in one graph each, through both gradient operators."""
    shapes = ((2, 8, 9, 9), (8, 1, 7, 7), (8,))
    arguments = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    compiled = torch.compile(lambda *a: depthwise_conv2d(*a, "gelu"), fullgraph=True, backend="aot_eager")

    def plain(x, w, b):
        return F.gelu(F.conv2d(x, w, b, padding=3, groups=8))

    grads = [torch.autograd.grad(f(*arguments).square().sum(), arguments) for f in (compiled, plain)]
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("around", [False, True], ids=["inside", "around"])
def test_autocast_trains_in_one_graph(around):
    """The types are those of eager: bfloat16 out of float32, gradients in float32; float32 again without autocast."""

    def step(x, w, b):
        with nullcontext() if around else torch.autocast("cpu", torch.bfloat16):
            return depthwise_conv2d(x * 2, w, b, "gelu")

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    arguments = [torch.randn(s, requires_grad=True) for s in ((2, 8, 9, 7), (8, 1, 7, 7), (8,))]
    answers = []
    for function in (step, compiled):
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            output = function(*arguments)
        assert output.dtype == torch.bfloat16
        answers.append((output, *torch.autograd.grad(output.float().square().sum(), arguments)))
    assert {grad.dtype for grad in answers[1][1:]} == {torch.float32}
    torch.testing.assert_close(answers[1], answers[0])
    if around:
        assert compiled(*arguments).dtype == torch.float32


@pytest.mark.parametrize("program", PROGRAMS, ids=PROGRAMS)
def test_autocast_around_a_program_computes_as_around_the_layer(program):
    layer, x = Layer(), torch.randn(2, 8, 9, 9)
    run = PROGRAMS[program](layer, x)
    answers = []
    for function in (layer, run):
        with torch.autocast("cpu", torch.bfloat16):
            output = function(x)
        (grad,) = torch.autograd.grad(output.float().square().sum(), [dict(function.named_parameters())["weight"]])
        answers.append((output, grad))
    assert [t.dtype for t in answers[0]] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(answers[1], answers[0])
    assert run(x).dtype == torch.float32


def test_export_keeps_the_operator_and_any_batch_and_image():
    layer = Layer()
    program = export(layer, (torch.randn(2, 8, 9, 9),), dynamic_shapes=(IMAGES,))
    operators = [str(node.target) for node in program.graph.nodes if "widefield" in str(node.target)]
    assert operators == ["widefield.depthwise_conv2d.default"]
    for shape in ((1, 8, 9, 9), (5, 8, 14, 3), (3, 8, 1, 20)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape).contiguous(memory_format=layout)
            torch.testing.assert_close(program.module()(x), layer(x), rtol=0, atol=0)


def test_compiled_once_for_any_batch_and_image():
    counter, w = Counter(), torch.randn(8, 1, 7, 7)
    compiled = torch.compile(depthwise_conv2d, fullgraph=True, dynamic=True, backend=counter)
    for shape in ((2, 8, 9, 11), (5, 8, 14, 12), (3, 8, 4, 20)):  # no two equal at first: a compiler takes them for one
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x, w), depthwise_conv2d(x, w), rtol=0, atol=0)
    assert len(counter.graphs) == 1


def test_export_of_the_loss_with_any_batch_and_image():
    program = export(Loss(), loss_arguments(), dynamic_shapes=(IMAGES, IMAGES, MASK))
    assert [str(n.target) for n in program.graph.nodes if "widefield" in str(n.target)] == [
        "widefield.masked_patch_loss.default"
    ]
    for sizes in ((2, 4, 6), (5, 2, 8), (1, 6, 2)):
        arguments = loss_arguments(*sizes)
        torch.testing.assert_close(program.module()(*arguments), Loss()(*arguments), rtol=0, atol=0)


def test_the_loss_is_compiled_once_for_any_batch_and_image():
    counter = Counter()
    compiled = torch.compile(Loss(), fullgraph=True, dynamic=True, backend=counter)
    for sizes in ((5, 14, 22), (4, 6, 8), (2, 16, 4)):
        arguments = loss_arguments(*sizes)
        torch.testing.assert_close(compiled(*arguments), Loss()(*arguments), rtol=0, atol=0)
    assert len(counter.graphs) == 1


def test_a_batch_that_only_the_run_knows():
    """Its size is in no guard: the images whose mask holds anything, or a dimension that was marked."""

    def of_the_masked(prediction, image, mask):
        kept = mask.any((1, 2)).nonzero().squeeze(1)
        return Loss()(prediction[kept], image[kept], mask[kept])

    arguments = loss_arguments()
    arguments[2][1] = False
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(of_the_masked, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), of_the_masked(*arguments), rtol=0, atol=0)
    marked = [t.clone() for t in arguments]
    for t in marked:
        torch._dynamo.decorators.mark_unbacked(t, 0)
    marked[0].requires_grad_()
    compiled = torch.compile(Loss(), fullgraph=True, backend="aot_eager")
    loss = compiled(*marked)
    loss.backward()
    torch.testing.assert_close(loss.detach(), Loss()(*arguments), rtol=0, atol=0)
    assert marked[0].grad.count_nonzero() > 0
    with pytest.raises(ValueError, match="prediction has shape"):  # the operator still looks when it runs
        compiled(marked[0], marked[1][:4], marked[2][:4])


def test_compiled_gradients_of_the_loss_are_eager_ones():
    image, mask = torch.randn(2, 3, 8, 8), torch.rand(2, 4, 4) < 0.6

    def step(prediction):
        return masked_patch_loss(prediction * 2, image, mask, "smooth_l1", "patch") * 3

    for dynamic in (False, True):
        compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        here, there = (torch.ones(2, 12, 4, 4, requires_grad=True) for _ in range(2))
        expected, loss = step(here), compiled(there)
        expected.backward()
        loss.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(there.grad, here.grad)
