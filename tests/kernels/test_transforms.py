"""The operators under torch.func and forward-mode differentiation, and what traces and counts them."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from kernels import depthwise_conv2d, masked_patch_loss
from kernels.masked_patch_loss.reference import masked_patch_loss_reference
from models import create_model

X, W, B = (
    torch.randn(shape, generator=torch.Generator().manual_seed(3)) for shape in ((2, 16, 6, 7), (16, 1, 5, 3), (16,))
)


def ours(x, w):
    return depthwise_conv2d(x, w, B, "gelu")


def in_a_program(x, w):
    """Call the operator as traced and exported programs do."""
    return torch.ops.widefield.depthwise_conv2d(x, w, B, "gelu")


def reference(x, w):
    return F.gelu(F.conv2d(x, w, B, padding=(2, 1), groups=16))


@pytest.mark.parametrize(
    "derivative",
    [
        lambda f: jvp(f, (X, W), (X, W))[1],
        lambda f: jacfwd(lambda w: f(X, w).sum((2, 3)))(W),
        lambda f: grad(lambda w: f(X, w).sum())(W),
        lambda f: vmap(grad(lambda w, x: f(x[None], w).sum()), (None, 0))(W, X),
        lambda f: hessian(lambda x: f(x[:, None, None].expand(1, 16, 3, 3), W).sum())(X[0, :, 0, 0]),
        lambda f: vmap(lambda x: f(x[None], W))(X),
    ],
    ids=["jvp", "jacfwd", "grad", "gradients by image", "hessian", "vmap"],
)
def test_transforms_of_the_convolution(derivative):
    expected = derivative(reference)
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(derivative(ours), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(compiled(derivative)(ours), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(derivative(in_a_program), expected, rtol=1e-4, atol=1e-4)


def compiled(function):
    return torch.compile(function, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("around", [lambda f: f, compiled], ids=["eager", "compiled"])
def test_tangents_without_a_transform(around):
    def tangent(x):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(ours(forward_ad.make_dual(x, x), W)).tangent

    expected = jvp(lambda x: reference(x, W), (X,), (X,))[1]
    torch.testing.assert_close(around(tangent)(X), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("around", [lambda f: f, compiled], ids=["eager", "compiled"])
@pytest.mark.parametrize("target_norm", ["none", "window", "patch"])
def test_transforms_of_the_loss(target_norm, around):
    prediction, image = torch.randn(2, 12, 4, 4), torch.randn(2, 3, 8, 8)
    mask = torch.tensor([[[1, 0], [0, 1]], [[1, 1], [0, 0]]])

    def loss(f):
        return jvp(lambda p: f(p, image, mask, "l2", target_norm, 3), (prediction,), (prediction,))

    value, tangent = around(loss)(masked_patch_loss)
    torch.testing.assert_close((value, tangent), loss(masked_patch_loss_reference), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(value, masked_patch_loss(prediction, image, mask, "l2", target_norm, 3))


def test_a_scripted_function():
    def call(x: Tensor, w: Tensor) -> Tensor:
        return depthwise_conv2d(x, w)

    assert torch.equal(torch.jit.script(call)(X, W), depthwise_conv2d(X, W))


def test_a_symbolic_trace_has_the_operator():
    model = create_model("replknet_nano").eval()
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes].count(depthwise_conv2d) >= 5
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(traced(image), model(image))


def test_flops():
    """Forward as PyTorch counts its own convolution; as many for each gradient."""
    with FlopCounterMode(display=False) as forward:
        depthwise_conv2d(X, W)
    with FlopCounterMode(display=False) as native:
        F.conv2d(X, W, padding=(2, 1), groups=16)
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    with FlopCounterMode(display=False) as training:
        depthwise_conv2d(x, w).sum().backward()
    assert forward.get_total_flops() == native.get_total_flops() == 2 * X.numel() * 15
    assert training.get_total_flops() == 3 * forward.get_total_flops()
