"""The operator as a module, in the place of nn.Conv2d."""

from typing import Any

from torch import Tensor, nn

from kernels.depthwise_conv2d.op import depthwise_conv2d


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise nn.Conv2d, [B,C,H,W] both ways, computed by `depthwise_conv2d`.

    Arguments, parameters and state_dict are those of nn.Conv2d. Raises `ValueError` unless it is depthwise with one
    filter a channel, of stride and dilation 1, with an odd kernel and zero padding that keeps the size. Unlike
    nn.Conv2d it takes no single image [C,H,W].
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if problem := _unsupported(self):
            raise ValueError(problem)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.bias)


def convert_depthwise_conv2d(model: nn.Module, smallest: int = 5) -> int:
    """Make a `DepthwiseConv2d` of every nn.Conv2d in `model` that can be one; return how many there were.

    In place: parameters, hooks and state_dict stay. Subclasses of nn.Conv2d are left as they are, and so are filters
    with a side below `smallest` pixels.
    """
    found = [m for m in model.modules() if type(m) is nn.Conv2d and not _unsupported(m)]
    found = [m for m in found if min(m.kernel_size) >= smallest]
    for module in found:
        module.__class__ = DepthwiseConv2d
    return len(found)


def _unsupported(convolution: nn.Conv2d) -> str:
    """What keeps the operator from computing `convolution`, or an empty string."""
    wanted = {
        "groups": convolution.in_channels,
        "out_channels": convolution.in_channels,
        "stride": (1, 1),
        "dilation": (1, 1),
        "padding_mode": "zeros",
        "padding": tuple(side // 2 for side in convolution.kernel_size),
    }
    for name, value in wanted.items():
        given = getattr(convolution, name)
        if given != value and (name, given) != ("padding", "same"):
            return f"{name} is {given}: DepthwiseConv2d needs {value} here, take nn.Conv2d for others"
    if not all(side % 2 for side in convolution.kernel_size):
        return f"kernel_size is {convolution.kernel_size}: DepthwiseConv2d needs odd sides"
    return ""
