"""The operator as a module, in the place of nn.Conv2d."""

from typing import Any

from torch import Tensor, nn

from kernels.depthwise_conv2d.op import depthwise_conv2d


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise nn.Conv2d, [B,C,H,W] both ways, computed by `depthwise_conv2d`.

    Arguments, parameters and state_dict are those of nn.Conv2d. Raises `ValueError` unless it is depthwise with one
    filter a channel, of stride and dilation 1, with an odd kernel and zero padding that keeps the size.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        wanted = {
            "groups": self.in_channels,
            "out_channels": self.in_channels,
            "stride": (1, 1),
            "dilation": (1, 1),
            "padding_mode": "zeros",
            "padding": tuple(side // 2 for side in self.kernel_size),
        }
        for name, value in wanted.items():
            given = getattr(self, name)
            if given != value and (name, given) != ("padding", "same"):
                raise ValueError(f"{name} is {given}: DepthwiseConv2d needs {value} here, take nn.Conv2d for others")
        if not all(side % 2 for side in self.kernel_size):
            raise ValueError(f"kernel_size is {self.kernel_size}: DepthwiseConv2d needs odd sides")

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.bias)
