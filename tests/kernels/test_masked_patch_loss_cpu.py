"""The masked-patch loss on the CPU, its gradient, and how it behaves as an operator."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from loss_cases import CASES, LossCase, make_loss_problem
from torch.library import opcheck

from kernels import masked_patch_loss
from kernels.masked_patch_loss import vectorized
from kernels.masked_patch_loss.reference import masked_patch_loss_reference

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
LOSSES, NORMS = ("l1", "smooth_l1", "l2"), ("none", "window", "patch")


def run(problem, layout=torch.contiguous_format, grad_loss=1.0):
    prediction = problem.prediction.clone(memory_format=layout).requires_grad_()
    loss = masked_patch_loss(prediction, problem.image, problem.mask, *problem.settings)
    loss.backward(torch.tensor(grad_loss, dtype=loss.dtype))
    assert prediction.grad is not None
    return loss.detach(), prediction.grad


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_within_the_bound_of_float64(case, dtype, layout):
    for loss, norm in itertools.product(LOSSES, NORMS):
        problem = make_loss_problem(case, dtype, loss, norm, grad_loss=3.0)
        result, grad = run(problem, LAYOUTS[layout], 3.0)
        problem.check(result, grad)
        assert grad.is_contiguous(memory_format=LAYOUTS[layout])


@pytest.mark.parametrize("loss", LOSSES)
def test_beside_an_image_of_float64_it_is_float64(loss):
    problem = make_loss_problem(CASES[0], torch.float32, loss, image_dtype=torch.float64)
    problem.check(*run(problem))


def upstream(prediction, image, mask, norm):
    """SimMIM as its authors compute it, with MAE's normalisation where norm is "patch"."""
    size = image.shape[2] // mask.shape[1]
    restored = F.pixel_shuffle(prediction, image.shape[2] // prediction.shape[2])
    weight = mask.repeat_interleave(size, 1).repeat_interleave(size, 2).unsqueeze(1).to(image.dtype)
    if norm == "window":
        image = sliding_window(image, 47)
    return (F.l1_loss(image, restored, reduction="none") * weight).sum() / (weight.sum() + 1e-5) / image.shape[1]


def sliding_window(image, window):
    """Unbiased mean and variance of every window, gathered pixel by pixel."""
    radius, (height, width) = window // 2, image.shape[2:]
    out = torch.empty_like(image)
    for y, x in itertools.product(range(height), range(width)):
        part = image[:, :, max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1]
        var, mean = torch.var_mean(part, dim=(2, 3))
        out[:, :, y, x] = (image[:, :, y, x] - mean) / (var + 1e-6).sqrt()
    return out


@pytest.mark.parametrize("norm", ["none", "window"])
def test_reference_and_operator_are_simmims_loss(norm):
    torch.manual_seed(0)
    prediction, image = torch.randn(2, 3 * 64, 7, 6, dtype=torch.float64), torch.randn(2, 3, 56, 48).double()
    mask = torch.rand(2, 14, 12) < 0.6
    expected = upstream(prediction, image, mask, norm)
    for function in (masked_patch_loss_reference, masked_patch_loss):
        torch.testing.assert_close(function(prediction, image, mask, "l1", norm), expected, rtol=1e-9, atol=0)


def test_patch_normalisation_is_maes():
    """MAE: patches as rows of p*p*3 values, normalised by their mean and unbiased variance; mean of masked patches."""
    torch.manual_seed(0)
    prediction, image = torch.randn(2, 3 * 16, 3, 2, dtype=torch.float64), torch.randn(2, 3, 12, 8).double()
    mask = torch.rand(2, 3, 2) < 0.6
    rows = image.reshape(2, 3, 3, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(2, 6, 48)
    target = (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, keepdim=True) + 1e-6) ** 0.5
    error = (prediction.flatten(2).transpose(1, 2) - target).square().mean(-1)  # [2,6]
    expected = (error * mask.flatten(1)).sum() / mask.sum()
    for function in (masked_patch_loss_reference, masked_patch_loss):
        torch.testing.assert_close(function(prediction, image, mask, "l2", "patch"), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm", ["window", "patch"])
def test_the_variance_does_not_cancel(norm):
    """A faint texture on a bright ground, in float32: E[x^2] - E[x]^2 there has no digit left."""
    torch.manual_seed(0)
    image = 50.0 + 0.01 * torch.randn(1, 3, 32, 32)
    prediction, mask = torch.zeros(1, 3 * 64, 4, 4), torch.ones(1, 4, 4)
    exact = masked_patch_loss_reference(prediction.double(), image.double(), mask, "l1", norm)
    loss = masked_patch_loss(prediction, image, mask, "l1", norm)
    assert abs(loss.item() / exact.item() - 1) < 1e-4
    flat = masked_patch_loss(prediction, torch.full_like(image, 50.0), mask, "l1", norm)
    assert flat.item() == 0.0, "a flat target is 0, not a rounding error divided by 1e-3"


@pytest.mark.parametrize(("norm", "side"), [("patch", 4), ("window", 1)])
def test_a_single_value_is_its_own_mean(norm, side):
    """It has no unbiased variance: the target is 0, in the specification as in the operator."""
    prediction, image = torch.randn(2, 1, 1, side, side, dtype=torch.float64)
    mask = torch.ones(1, side, side)
    expected = prediction.abs().sum() / (side**2 + 1e-5)
    for operation in (masked_patch_loss_reference, masked_patch_loss):
        torch.testing.assert_close(operation(prediction, image, mask, "l1", norm, 3), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", NORMS)
def test_nothing_masked_is_zero(loss, norm, layout):
    problem = make_loss_problem(CASES[0], loss=loss, target_norm=norm, ratio=0.0)
    result, grad = run(problem, LAYOUTS[layout])
    assert not problem.mask.any()
    assert result.item() == 0.0
    assert torch.equal(grad, torch.zeros_like(grad))


def test_everything_masked():
    problem = make_loss_problem(CASES[1], ratio=1.1)
    assert problem.mask.all()
    problem.check(*run(problem))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_output_is_written(layout, monkeypatch):
    """Memory that comes uninitialised is NaN (77 in bytes) here, so an element left out is seen."""
    real = torch.empty_like

    def poisoned(*args, **kwargs):
        out = real(*args, **kwargs)
        return out.fill_(float("nan") if out.is_floating_point() else 77)

    monkeypatch.setattr(torch, "empty_like", poisoned)
    for loss in LOSSES:
        problem = make_loss_problem(CASES[0], loss=loss)
        problem.check(*run(problem, LAYOUTS[layout]))


@pytest.mark.parametrize(
    ("layout", "patch", "gathered"),
    [("nhwc", 8, True), ("nhwc", 16, True), ("nchw", 8, True), ("nhwc", 4, False), ("nchw", 4, False)],
)
def test_masked_cells_alone_are_computed_unless_patches_divide_them(layout, patch, gathered, monkeypatch):
    shapes = []
    real = vectorized._sum
    monkeypatch.setattr(vectorized, "_sum", lambda d, loss: shapes.append(tuple(d.shape)) or real(d, loss))
    problem = make_loss_problem(LossCase(1, 3, 4, 2, 8, patch))
    problem.check(*run(problem, LAYOUTS[layout]))
    masked = problem.mask.sum().item() * (patch // 8) ** 2
    assert shapes == [(masked, 192) if gathered else (3, 8, 8, 4, 2)]


def test_a_small_gradient_survives_float16():
    """1 / (masked pixels) is below float16; the loss scaler's factor must come in before the rounding."""
    prediction = torch.randn(4, 3 * 256, 12, 12).half().requires_grad_()
    image, mask = torch.randn(4, 3, 192, 192), torch.ones(4, 12, 12)
    (masked_patch_loss(prediction, image, mask) * 1000).backward()
    expected = 1000 / (4 * 192 * 192) / 3
    torch.testing.assert_close(prediction.grad.abs().float(), torch.full_like(prediction.grad, expected).float())


@pytest.mark.parametrize("patch", [2, 1], ids=["gathered", "whole"])
def test_a_far_prediction_has_l2s_gradient_in_float16(patch):
    """Twice the difference is above float16's largest number, the gradient is not."""
    prediction = torch.full((1, 12, 1, 1), 40000.0).half().requires_grad_()
    image, mask = torch.zeros(1, 3, 2, 2), torch.ones(1, 2 // patch, 2 // patch)
    masked_patch_loss(prediction, image, mask, "l2").backward()
    torch.testing.assert_close(prediction.grad, prediction.detach() / 6)


def test_backward_twice_over_a_kept_graph_does_no_damage():
    problem = make_loss_problem(CASES[0], loss="l2")
    prediction = problem.prediction.clone().requires_grad_()
    loss = masked_patch_loss(prediction, problem.image, problem.mask, "l2")
    (first,) = torch.autograd.grad(5 * loss, prediction, retain_graph=True)
    first.zero_()
    (second,) = torch.autograd.grad(loss, prediction, retain_graph=True)
    problem.check(loss.detach(), second)
    assert torch.equal(prediction.detach().nan_to_num(), problem.prediction.nan_to_num())


def test_any_strides_and_mask_types():
    problem = make_loss_problem(CASES[2])
    image = problem.image.transpose(2, 3).contiguous().transpose(2, 3)
    prediction = problem.prediction.transpose(1, 3).contiguous().transpose(1, 3)
    for mask in (problem.mask.long(), problem.mask.float() * -0.5, problem.mask.transpose(1, 2).contiguous().mT):
        source = prediction.clone(memory_format=torch.preserve_format).requires_grad_()
        loss = masked_patch_loss(source, image, mask, *problem.settings)
        loss.backward()
        problem.check(loss.detach(), source.grad)


def test_evaluation_computes_no_gradient(monkeypatch):
    problem = make_loss_problem(CASES[0])
    monkeypatch.setattr(vectorized, "_derivative", None)
    with torch.no_grad():
        problem.check(masked_patch_loss(problem.prediction.requires_grad_(), problem.image, problem.mask), None)
    problem.check(masked_patch_loss(problem.prediction.detach(), problem.image, problem.mask), None)
    operator = torch.ops.widefield.masked_patch_loss
    loss = operator(problem.prediction.requires_grad_(), problem.image, problem.mask, gradient=False)[0]
    with pytest.raises(RuntimeError, match="gradient=True"):
        loss.backward()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradcheck(loss, norm):
    torch.manual_seed(0)
    prediction = torch.randn(2, 2 * 4, 2, 3, dtype=torch.float64, requires_grad=True)
    image, mask = torch.randn(2, 2, 4, 6).double(), torch.rand(2, 2, 3) < 0.6
    assert torch.autograd.gradcheck(lambda p: masked_patch_loss(p, image, mask, loss, norm, 3), (prediction,))


def test_the_loss_may_be_divided_in_place():
    """Accumulating gradients does so."""
    problem = make_loss_problem(CASES[0])
    prediction = problem.prediction.clone().requires_grad_()
    grads = []
    for divide in (lambda loss: loss / 4, lambda loss: loss.div_(4)):
        loss = masked_patch_loss(prediction, problem.image, problem.mask, *problem.settings)
        grads += torch.autograd.grad(divide(loss), prediction)
    assert torch.equal(*grads)


def test_differentiating_twice_is_refused():
    prediction = torch.randn(1, 4, 2, 2, requires_grad=True)
    loss = masked_patch_loss(prediction, torch.randn(1, 1, 4, 4), torch.ones(1, 2, 2), "l2")
    (grad,) = torch.autograd.grad(loss, prediction, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        (loss + grad.square().sum()).backward()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_opcheck(loss, layout):
    prediction = torch.randn(2, 3 * 4, 2, 3).contiguous(memory_format=LAYOUTS[layout])
    image, mask = torch.randn(2, 3, 4, 6), torch.rand(2, 2, 3) < 0.6
    operator = torch.ops.widefield.masked_patch_loss
    opcheck(operator.default, (prediction.clone().requires_grad_(), image, mask, loss, "window", 3))
    opcheck(operator.default, (prediction, image, mask), {"gradient": False})
    _, unscaled_grad, scale = operator(prediction, image, mask, loss)
    backward = torch.ops.widefield.masked_patch_loss_backward
    opcheck(backward.default, (torch.tensor(2.0), unscaled_grad, scale, torch.float32, 12))


def test_autocast_keeps_float32_arithmetic():
    problem = make_loss_problem(CASES[0], torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        problem.check(*run(problem))


def test_same_bits_every_time():
    problem = make_loss_problem(LossCase(3, 3, 6, 6, 8, 8), target_norm="window")
    first, second = run(problem), run(problem)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


P, X, M = torch.zeros(2, 12, 3, 2), torch.zeros(2, 3, 6, 4), torch.ones(2, 3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((P, X.numpy(), M), "image is of type ndarray: a tensor is expected"),
        ((P, X, None), "mask is of type NoneType: a tensor is expected"),
        ((P[0], X, M), "prediction has shape [12, 3, 2]: [B,C*s*s,h,w]"),
        ((P, X[0], M), "image has shape [3, 6, 4]: [B,C,H,W]"),
        ((P, X, M[:, None]), "mask has shape [2, 1, 3, 2]: [B,h',w']"),
        ((P[:, :11], X, M), "prediction has shape [2, 11, 3, 2]"),
        ((P[:1], X, M), "prediction has shape [1, 12, 3, 2]"),
        ((P, X[:, :, :5], M), "image [2, 3, 5, 4]"),
        ((P, X, M[:1]), "mask has shape [1, 3, 2]"),
        ((P, X, M[:, :2]), "mask has shape [2, 2, 2]"),
        ((P, X, torch.ones(2, 7, 4)), "mask has shape [2, 7, 4]"),
        (
            (torch.zeros(2, 12, 6, 6), torch.zeros(2, 3, 12, 12), torch.ones(2, 4, 4)),
            "3 pixels, the prediction's stride 2",
        ),
        ((P[:, :, :0], X, M), "none may be empty"),
        ((P[:0], X[:0], M[:0]), "none may be empty"),
        ((P.int(), X, M), "prediction is torch.int32"),
        ((P, X.byte(), M), "image is torch.uint8"),
        ((P.to(torch.float8_e4m3fn), X, M), "prediction is torch.float8_e4m3fn: float32, float16, bfloat16 or float64"),
        ((P, X.to(torch.float8_e5m2), M), "image is torch.float8_e5m2"),
        ((P, X.to("meta"), M), "image is on meta"),
        ((P, X, M, "huber"), "loss 'huber': choose one of l1, smooth_l1, l2"),
        ((P, X, M, "l1", "layer"), "target_norm 'layer'"),
        ((P, X, M, "l1", "window", 4), "window 4"),
        ((P, X, M, "l1", "window", 1), "window 1"),
        ((P, X.clone().requires_grad_(), M), "image.detach()"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=r".") as raised:
        masked_patch_loss(*arguments)
    assert message in str(raised.value)


def test_an_image_that_is_learned_is_evaluated_without_gradients():
    with torch.no_grad():
        assert masked_patch_loss(P + 1, X.clone().requires_grad_(), M).item() == pytest.approx(1)
