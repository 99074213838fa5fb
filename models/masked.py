"""Masked image modelling on a RepLKNet: SimMIM's token, or only visible positions, as in SparK.

token   (SimMIM, Xie et al., CVPR 2022) the stem's output is replaced by a learned vector where a patch is masked.
sparse  (SparK, Tian et al., ICLR 2023) masked positions are left out: after every convolution they are 0, and every
        batch norm takes its statistics from the visible positions. A learned vector then fills the empty positions of
        the last map, and one large-kernel block brings them information from their neighbours (FCMAE, Woo et al., CVPR
        2023): a 1 x 1 decoder alone would see nothing there. SparK's own decoder is a U-Net over the maps of all
        stages, and its loss is "l2" with the targets normalised by "patch".

In both modes masked pixels are 0 before the stem, whose overlapping convolutions would carry them to visible positions.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kernels import masked_patch_loss
from kernels.masked_patch_loss.vectorized import repeat_patches, target_statistics
from models.layers import ConvBN, ConvFFN, RepLKBlock
from models.replknet import RepLKNet

MaskMode = Literal["token", "sparse"]
STRIDE, STEM_STRIDE = 32, 4


class MaskedPretrainer(nn.Module):
    """Encoder, decoder (1 x 1; in `sparse` with a block before it) and the loss on masked patches.

    `loss`, `target_norm` and `window` are those of `kernels.masked_patch_loss`. The encoder's head is not used; its
    parameters are frozen. In `sparse` the encoder's batch norms become `MaskedBatchNorm2d`: the same parameters and
    keys, so its state dict is that of a plain RepLKNet. Raises `ValueError` for another mode, for an encoder that is no
    RepLKNet, of other than four stages or in deploy form and, in `sparse`, for batch norms of another kind.
    """

    def __init__(
        self,
        encoder: RepLKNet,
        mask_mode: MaskMode = "token",
        loss: str = "l1",
        target_norm: str = "none",
        window: int = 47,
    ) -> None:
        super().__init__()
        if mask_mode not in ("token", "sparse"):
            raise ValueError(f"mask_mode {mask_mode!r}: choose token or sparse")
        if not isinstance(encoder, RepLKNet):
            raise ValueError(
                f"the encoder is a {type(encoder).__name__}: a RepLKNet is needed (create_replknet); compile or wrap "
                "the MaskedPretrainer"
            )
        if len(encoder.stages) != 4 or getattr(encoder, "deploy_form", False):
            raise ValueError("the encoder has other than 4 stages, or is in deploy form: its training form is needed")
        self.encoder, self.loss, self.target_norm, self.window = encoder, loss, target_norm, window
        encoder.head.requires_grad_(False)
        first, features = cast(ConvBN, encoder.stem[0]).conv, encoder.num_features
        width = first.out_channels
        self.decoder = nn.Conv2d(features, STRIDE**2 * first.in_channels, 1)
        self.fill: FillEmpty | None = None
        self.mask_token: nn.Parameter | None = None
        self.visible: Visible | None = None
        if mask_mode == "token":
            self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        else:
            self.visible = Visible()
            for module in encoder.modules():
                if type(module) in (nn.BatchNorm2d, MaskedBatchNorm2d):  # the latter from another pretrainer
                    module.__class__ = MaskedBatchNorm2d
                    module.visible = self.visible  # type: ignore[assignment]
            self._check_norms()
            self.fill = FillEmpty(features)

    def _check_norms(self) -> None:
        """Raise `ValueError` for batch norms that would see masked positions, such as convert_sync_batchnorm's."""
        for module in self.encoder.modules():
            if isinstance(module, _BatchNorm) and not isinstance(module, MaskedBatchNorm2d):
                raise ValueError(f"the encoder has {type(module).__name__}: sparse mode needs nn.BatchNorm2d")

    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        """images [B,3,H,W] normalised, mask [B,h',w'] (1 = masked) -> loss []."""
        return masked_patch_loss(self.predict(images, mask), images, mask, self.loss, self.target_norm, self.window)

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """images [B,3,H,W], mask [B,h',w'] -> [B,32*32*3,H/32,W/32], before PixelShuffle.

        Raises `ValueError` for other shapes, an image that is no multiple of 32 pixels, patches that are no multiple of
        4, or in sparse mode ones that neither divide 32 nor are a multiple of it, and activation checkpointing.
        """
        if images.dim() != 4 or mask.dim() != 3 or 0 in mask.shape[1:]:
            raise ValueError(
                f"images have shape {list(images.shape)}, mask {list(mask.shape)}: [B,3,H,W] and [B,h',w'] are expected"
            )
        height, width = images.shape[2:]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"images of {height} x {width} pixels: multiples of {STRIDE} are expected")
        patch = height // mask.shape[1]
        if patch % STEM_STRIDE or mask.shape[1] * patch != height or mask.shape[2] * patch != width:
            raise ValueError(
                f"mask [{mask.shape[1]},{mask.shape[2]}] on images of {height} x {width} pixels: square patches of a "
                f"multiple of {STEM_STRIDE} pixels are expected"
            )
        if self.visible is not None and patch % STRIDE and STRIDE % patch:
            raise ValueError(f"patches of {patch} pixels: sparse mode takes 4, 8, 16 or a multiple of {STRIDE}")
        masked = mask[:, None] != 0  # [B,1,h',w']
        x = images.masked_fill(repeat_patches(masked, patch), 0.0)
        if self.visible is not None:
            assert self.fill is not None
            self._check_norms()
            if torch.is_grad_enabled() and any(stage.grad_checkpointing for stage in self.encoder.stages):
                raise ValueError(
                    "activation checkpointing computes blocks again when the mask is gone: sparse mode needs "
                    "encoder.set_grad_checkpointing(False)"
                )
            self.visible.patches = ~masked
            try:
                features = self.encoder.forward_features(x)  # [B,C,H/32,W/32]
                visible = self.visible.at(features.shape[2])
            finally:
                self.visible.patches = None
            return self.decoder(self.fill(features, visible))
        x = self.encoder.forward_stem(x)
        assert self.mask_token is not None
        x = torch.where(repeat_patches(masked, patch // STEM_STRIDE), self.mask_token.to(x.dtype).view(1, -1, 1, 1), x)
        return self.decoder(self.encoder.forward_stages(x))

    @torch.no_grad()
    def reconstruct(self, images: Tensor, mask: Tensor) -> Tensor:
        """[B,3,H,W], normalised as the images are: the prediction everywhere, the target's normalisation undone."""
        prediction = F.pixel_shuffle(self.predict(images, mask).float(), STRIDE)
        if self.target_norm == "none":
            return prediction
        patch = images.shape[2] // mask.shape[1]
        mean, std = target_statistics(images.double(), self.target_norm, patch, self.window)
        return (prediction * std + mean).to(images.dtype)


class FillEmpty(nn.Module):
    """Features [B,C,h,w], visible [B,1,h,w] -> [B,C,h,w]: a learned vector where nothing is visible, then one block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.token = nn.Parameter(nn.init.trunc_normal_(torch.empty(channels), std=0.02))
        self.block = RepLKBlock(channels, 7, 3, 1.0, 0.0)
        self.ffn = ConvFFN(channels, 4 * channels, 0.0)

    def forward(self, features: Tensor, visible: Tensor) -> Tensor:
        return self.ffn(self.block(torch.where(visible, features, self.token.to(features.dtype).view(1, -1, 1, 1))))


class Visible:
    """Which positions are visible, at the resolution of any layer: one object that an encoder's batch norms share."""

    def __init__(self) -> None:
        self.patches: Tensor | None = None  # [B,1,h',w'] bool

    def at(self, height: int) -> Tensor:
        """[B,1,height,W] bool, for maps of that height; a position that covers several patches is visible if one is."""
        assert self.patches is not None
        rows = self.patches.shape[2]
        if height >= rows:
            return repeat_patches(self.patches, height // rows)
        return F.max_pool2d(self.patches.float(), rows // height) > 0


class MaskedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over visible positions; the others become 0. Without a mask it is `nn.BatchNorm2d`."""

    visible: Visible | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.visible is None or self.visible.patches is None:
            return super().forward(x)
        visible = self.visible.at(x.shape[2])
        weight = visible.to(torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype)
        wide = x.to(weight.dtype)
        assert self.running_mean is not None
        assert self.running_var is not None
        if self.training:
            count = weight.sum().clamp(min=1)
            mean = (wide * weight).sum((0, 2, 3)) / count  # [C]
            centred = wide - mean.view(1, -1, 1, 1)
            var = (centred.square() * weight).sum((0, 2, 3)) / count
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
                momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                unbiased = var * count / (count - 1).clamp(min=1)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        else:
            mean, var = self.running_mean, self.running_var
            centred = wide - mean.view(1, -1, 1, 1)
        scale = torch.rsqrt(var + self.eps) * self.weight
        out = centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return torch.where(visible, out, 0.0).to(x.dtype)
