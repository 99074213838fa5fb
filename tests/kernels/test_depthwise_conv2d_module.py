"""The module in the place of nn.Conv2d."""

import pytest
import torch
from torch import nn

from kernels import DepthwiseConv2d


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
