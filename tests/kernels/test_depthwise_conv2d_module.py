"""The module in the place of nn.Conv2d."""

import pytest
import timm
import torch
from torch import nn

from kernels import DepthwiseConv2d, convert_depthwise_conv2d


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel_size", "padding"), [(7, 3), (7, "same"), ((5, 31), (2, 15))])
def test_it_takes_the_place_of_nn_conv2d(kernel_size, padding, bias):
    options = {"kernel_size": kernel_size, "padding": padding, "groups": 16, "bias": bias, "dtype": torch.float64}
    theirs, ours = nn.Conv2d(16, 16, **options), DepthwiseConv2d(16, 16, **options)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 16, 9, 40, dtype=torch.float64, requires_grad=True)
    answers = [module(images) for module in (theirs, ours)]
    torch.testing.assert_close(answers[1], answers[0])
    gradients = [torch.autograd.grad(answer.square().sum(), images)[0] for answer in answers]
    torch.testing.assert_close(gradients[1], gradients[0])


def test_the_operator_computes_it():
    module = DepthwiseConv2d(16, 16, 7, padding=3, groups=16)
    with torch.profiler.profile() as profile:
        module(torch.randn(1, 16, 9, 9))
    assert "widefield::depthwise_conv2d" in {event.name for event in profile.events()}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"groups": 1}, "groups is 1"),
        ({"groups": 8}, "groups is 8"),
        ({"out_channels": 32}, "out_channels is 32"),
        ({"stride": 2}, r"stride is \(2, 2\)"),
        ({"dilation": 2}, r"dilation is \(2, 2\)"),
        ({"padding": 0}, r"padding is \(0, 0\)"),
        ({"padding": "valid"}, "padding is valid"),
        ({"padding_mode": "circular"}, "padding_mode is circular"),
        ({"kernel_size": 6, "padding": 3}, r"kernel_size is \(6, 6\)"),
    ],
)
def test_what_the_operator_does_not_compute_is_refused(options, name):
    usual = {"in_channels": 16, "out_channels": 16, "kernel_size": 7, "padding": 3, "groups": 16}
    with pytest.raises(ValueError, match=name):
        DepthwiseConv2d(**{**usual, **options})


def test_a_network_is_converted():
    """timm's own layers: those of 7 x 7; the answers, the parameters and the keys stay."""
    network = timm.create_model("convnext_atto").eval().double()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    keys, parameters, expected = list(network.state_dict()), list(network.parameters()), network(images)
    assert convert_depthwise_conv2d(network) == 12
    assert [id(p) for p in network.parameters()] == [id(p) for p in parameters]
    assert list(network.state_dict()) == keys
    torch.testing.assert_close(network(images), expected)
    assert convert_depthwise_conv2d(network) == 0


class Special(nn.Conv2d):
    pass


def test_what_is_not_converted():
    """Small filters, other strides, dense ones, and subclasses, whose forward may be their own."""
    usual = {"padding": 3, "groups": 4}
    network = nn.Sequential(
        nn.Conv2d(4, 4, 7, stride=2, **usual),
        nn.Conv2d(4, 4, 7, padding=3),
        Special(4, 4, 7, **usual),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, (3, 7), padding=(1, 3), groups=4),
    )
    assert convert_depthwise_conv2d(network) == 0
    assert convert_depthwise_conv2d(network, smallest=3) == 2
    assert [type(layer) is DepthwiseConv2d for layer in network] == [False, False, False, True, True]
