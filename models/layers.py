"""RepLKNet's two kinds of blocks and the layers that they are made of, each with its own `reparameterize()`."""

import torch
from torch import Tensor, nn

from kernels import DepthwiseConv2d, depthwise_conv2d
from models.reparameterize import fold_after, fold_before, is_batch_norm, merge_branches


class ConvBN(nn.Module):
    """Convolution, batch norm, activation; after `reparameterize()` a convolution with a bias and the activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: nn.Module | None = None,
        conv: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.conv = conv(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(out_channels)
        self.activation = activation or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.bn(self.conv(x)))

    def reparameterize(self) -> None:
        if is_batch_norm(self.bn):
            fold_after(self.conv, self.bn)
            self.bn = nn.Identity()


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): in training a sample's branch is left out with probability `rate`."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0.0:
            return x
        keep = torch.empty((x.shape[0], 1, 1, 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * (keep / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class ReparamLargeKernelConv(nn.Module):
    """relu(BN(K x K depthwise) + BN(small depthwise)), [B,C,h,w] both ways; in deploy form one call of the operator."""

    def __init__(self, channels: int, kernel_size: int, small_kernel: int | None) -> None:
        super().__init__()
        self.lkb_reparam: nn.Conv2d | None = None
        self.small_conv: ConvBN | None = None
        self.lkb_origin: ConvBN | None = ConvBN(channels, channels, kernel_size, groups=channels, conv=DepthwiseConv2d)
        if small_kernel is not None:
            self.small_conv = ConvBN(channels, channels, small_kernel, groups=channels, conv=DepthwiseConv2d)

    def forward(self, x: Tensor) -> Tensor:
        if self.lkb_reparam is not None:
            return depthwise_conv2d(x, self.lkb_reparam.weight, self.lkb_reparam.bias, "relu")
        assert self.lkb_origin is not None
        if self.small_conv is None:
            return torch.relu(self.lkb_origin(x))
        return torch.relu(self.lkb_origin(x) + self.small_conv(x))

    def reparameterize(self) -> None:
        if self.lkb_reparam is not None:
            return
        assert self.lkb_origin is not None
        for branch in (self.lkb_origin, self.small_conv):
            if branch is not None:
                branch.reparameterize()
                if not isinstance(branch.bn, nn.Identity):
                    what = f"{type(branch.bn).__name__} after a large kernel"
                    raise ValueError(f"{what} cannot be folded, so its branches cannot be merged: batch norms can")
        small = None if self.small_conv is None else self.small_conv.conv
        self.lkb_reparam = merge_branches(self.lkb_origin.conv, small)
        self.lkb_origin = self.small_conv = None


class RepLKBlock(nn.Module):
    """Spatial mixing: 1 x 1, K x K depthwise, 1 x 1, with a residual. [B,C,h,w] both ways."""

    def __init__(
        self, channels: int, kernel_size: int, small_kernel: int | None, dw_ratio: float, drop_path: float
    ) -> None:
        super().__init__()
        width = int(channels * dw_ratio)
        self.prelkb_bn: nn.Module = nn.BatchNorm2d(channels)
        self.pw1 = ConvBN(channels, width, activation=nn.ReLU())
        self.large_kernel = ReparamLargeKernelConv(width, kernel_size, small_kernel)
        self.pw2 = ConvBN(width, channels)
        self.drop_path: nn.Module = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out = self.pw1(self.prelkb_bn(x))  # [B,dw_ratio*C,h,w]
        return x + self.drop_path(self.pw2(self.large_kernel(out)))

    def reparameterize(self) -> None:
        for part in (self.pw1, self.large_kernel, self.pw2):
            part.reparameterize()
        if is_batch_norm(self.prelkb_bn):
            fold_before(self.prelkb_bn, self.pw1.conv)
            self.prelkb_bn = nn.Identity()
        if isinstance(self.drop_path, DropPath):
            self.drop_path = nn.Identity()


class ConvFFN(nn.Module):
    """Channel mixing: two 1 x 1 convolutions around GELU, with a residual. [B,C,h,w] both ways."""

    def __init__(self, channels: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.preffn_bn: nn.Module = nn.BatchNorm2d(channels)
        self.pw1 = ConvBN(channels, hidden, activation=nn.GELU())
        self.pw2 = ConvBN(hidden, channels)
        self.drop_path: nn.Module = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.pw2(self.pw1(self.preffn_bn(x))))

    def reparameterize(self) -> None:
        self.pw1.reparameterize()
        self.pw2.reparameterize()
        if is_batch_norm(self.preffn_bn):
            fold_before(self.preffn_bn, self.pw1.conv)
            self.preffn_bn = nn.Identity()
        if isinstance(self.drop_path, DropPath):
            self.drop_path = nn.Identity()
