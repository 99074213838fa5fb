"""RepLKNet (Ding et al., "Scaling Up Your Kernels to 31x31", CVPR 2022), with the published checkpoints' keys.

Training form: every convolution has a batch norm and no bias; a K x K depthwise convolution runs beside a small one.
Published deploy form (`merge_branches()`): the two branches are one convolution, `large_kernel.lkb_reparam`.
Deploy form (`reparameterize()`): every batch norm is folded as well, and

    block(x) = x + pw2(depthwise_conv2d(relu(pw1(x)), weight, bias, "relu"))
    ffn(x)   = x + pw2(gelu(pw1(x)))
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from models.checkpointing import checkpointed
from models.errors import SettingsError
from models.layer_groups import layer_group
from models.layers import ConvBN, ConvFFN, ReparamLargeKernelConv, RepLKBlock
from models.reparameterize import fold_before, is_batch_norm


class RepLKNetStage(nn.Module):
    """[RepLKBlock, ConvFFN] for each rate in `drop_paths`; a pair shares its rate."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        drop_paths: Sequence[float],
        small_kernel: int | None,
        dw_ratio: float,
        ffn_ratio: float,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.blocks = nn.ModuleList()
        for rate in drop_paths:
            self.blocks.append(RepLKBlock(channels, kernel_size, small_kernel, dw_ratio, rate))
            self.blocks.append(ConvFFN(channels, int(channels * ffn_ratio), rate))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpointed(block, x) if self.grad_checkpointing else block(x)
        return x


class RepLKNet(nn.Module):
    """Normalised images [B,3,H,W] -> logits [B,num_classes]. Height and width are divided by 4, 8, 16 and 32.

    With `num_classes` 0 it returns the input of a head, the mean of its features over the positions [B,C].

    `layers`, `channels`, `kernel_sizes`: one entry a stage. `small_kernel`: size of the parallel branch, None for none.
    `dw_ratio`: width of the depthwise convolution over `channels`. `drop_path_rate`: rate of the last block, growing
    linearly from 0. Raises `ValueError` for impossible sizes.
    """

    def __init__(
        self,
        layers: Sequence[int],
        channels: Sequence[int],
        kernel_sizes: Sequence[int],
        small_kernel: int | None = 5,
        dw_ratio: float = 1.0,
        ffn_ratio: float = 4.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check(layers, channels, kernel_sizes, small_kernel, drop_path_rate)
        _check_widths(channels, dw_ratio, ffn_ratio, in_channels)
        width = channels[0]
        self.stem = nn.ModuleList(
            [
                ConvBN(in_channels, width, 3, stride=2, activation=nn.ReLU()),
                ConvBN(width, width, 3, groups=width, activation=nn.ReLU()),
                ConvBN(width, width, activation=nn.ReLU()),
                ConvBN(width, width, 3, stride=2, groups=width, activation=nn.ReLU()),
            ]
        )
        rates = torch.linspace(0, drop_path_rate, sum(layers), dtype=torch.float64, device="cpu").tolist()
        self.stages = nn.ModuleList()
        self.transitions = nn.ModuleList()
        for i, depth in enumerate(layers):
            stage_rates, rates = rates[:depth], rates[depth:]
            self.stages.append(
                RepLKNetStage(channels[i], kernel_sizes[i], stage_rates, small_kernel, dw_ratio, ffn_ratio)
            )
            if i + 1 < len(layers):
                out = channels[i + 1]
                self.transitions.append(
                    nn.Sequential(
                        ConvBN(channels[i], out, activation=nn.ReLU()),
                        ConvBN(out, out, 3, stride=2, groups=out, activation=nn.ReLU()),
                    )
                )
        self.norm: nn.Module = nn.BatchNorm2d(channels[-1])
        self.num_features, self.num_classes = channels[-1], num_classes
        self.head = _head(channels[-1], num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """[B,3,H,W] -> [B,C,h,w], h = ceil(H/32), after the final norm (deploy form: before it, it is in the head)."""
        return self.forward_stages(self.forward_stem(images))

    def forward_stem(self, images: Tensor) -> Tensor:
        """[B,3,H,W] -> [B,C1,ceil(H/4),ceil(W/4)]."""
        x = images
        for layer in self.stem:
            x = layer(x)
        return x

    def forward_stages(self, x: Tensor) -> Tensor:
        """The stem's output -> features."""
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i < len(self.transitions):
                x = self.transitions[i](x)
        return self.norm(x)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """[B,C,h,w] -> logits [B,num_classes], or the mean over the positions [B,C] that the head is given."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the head by a new one with random weights; 0: none. `global_pool` is timm's argument: None or "avg".

        Raises `ValueError` for another `global_pool`, and in deploy form, where the head contains the norm.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool {global_pool!r}: a RepLKNet has only the mean (avg)")
        if isinstance(self.norm, nn.Identity):
            raise ValueError("a re-parameterised model's head holds its last batch norm: reset the training form's")
        self.head = _head(self.num_features, num_classes).to(next(self.parameters()))
        self.num_classes = num_classes

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """In training, keep only the blocks' inputs, and recompute blocks in the backward pass (models.checkpointing).

        Not for forward passes in a context that has ended by then, such as AdvProp's choice of norms or a sparse mask.
        """
        for stage in self.stages:
            cast(RepLKNetStage, stage).grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Return the function parameter name -> layer-decay group; `coarse` is timm's argument, without effect."""
        return partial(layer_group, layers=[len(cast(RepLKNetStage, stage).blocks) // 2 for stage in self.stages])

    def merge_branches(self) -> None:
        """Published deploy form, in place: only the K x K and the small branch, with their batch norms, become one."""
        for module in self.modules():
            if isinstance(module, ReparamLargeKernelConv):
                module.reparameterize()

    def reparameterize(self) -> None:
        """Deploy form, in place: no batch norm is left, except the last one of a model without a head.

        `models.reparameterize` does it on a copy.
        """
        for module in list(self.modules()):
            if isinstance(module, ConvBN | RepLKBlock | ConvFFN):
                module.reparameterize()
        if is_batch_norm(self.norm) and isinstance(self.head, nn.Linear):
            fold_before(self.norm, self.head)  # the mean over positions commutes with an affine map
            self.norm = nn.Identity()
        self.set_grad_checkpointing(False)


def _head(channels: int, num_classes: int) -> nn.Module:
    if num_classes < 0:
        raise ValueError(f"num_classes {num_classes}: at least 1 is needed, or 0 for no head")
    return nn.Linear(channels, num_classes) if num_classes else nn.Identity()


def _check(
    layers: Sequence[int],
    channels: Sequence[int],
    kernel_sizes: Sequence[int],
    small_kernel: int | None,
    drop_path_rate: float,
) -> None:
    if not len(layers) == len(channels) == len(kernel_sizes) > 0:
        raise ValueError(
            f"layers {layers}, channels {channels}, kernel_sizes {kernel_sizes}: each needs one entry per stage"
        )
    if min(*layers, *channels, *kernel_sizes) < 1:
        raise ValueError(f"layers {layers}, channels {channels}, kernel_sizes {kernel_sizes}: 1 is the least")
    for size in [*kernel_sizes, *([] if small_kernel is None else [small_kernel])]:
        if size < 1:
            raise ValueError(f"kernel size {size}: 1 is the least; small_kernel=None leaves the small branch out")
        if size % 2 == 0:
            raise ValueError(f"kernel size {size} is even: an odd size is needed to keep the height and width")
    if small_kernel is not None and small_kernel > min(kernel_sizes):
        raise ValueError(f"small_kernel {small_kernel} is larger than the kernel sizes {kernel_sizes}")
    if not 0.0 <= drop_path_rate < 1.0:
        raise SettingsError(f"drop_path_rate {drop_path_rate}: it must be a probability below 1")


def _check_widths(channels: Sequence[int], dw_ratio: float, ffn_ratio: float, in_channels: int) -> None:
    if in_channels < 1:
        raise ValueError(f"in_channels {in_channels}: at least 1 is needed")
    for name, ratio in (("dw_ratio", dw_ratio), ("ffn_ratio", ffn_ratio)):
        if not min(channels) * ratio >= 1:
            raise ValueError(f"{name} {ratio}: at least one of {min(channels)} channels must be left")
