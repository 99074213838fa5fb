"""The supervised `training.loop.Learner`s: a model, its loss and what the method adds."""

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import linear_head, pooled_features
from training.loop import Learner
from training.losses import LDAM


class Supervised(Learner):
    """criterion(model(images), targets), with the batch mixed first if `mix` is given."""

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.criterion, self.mix = model, criterion, mix

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """images [B,3,S,S], targets [B] -> loss []."""
        if self.mix is not None and self.training:
            images, targets = self.mix(images, targets)
        return self.criterion(self.model(images), targets)


class CosineSupervised(Supervised):
    """A learner whose logits are cosines of the pooled feature and the head's rows, as LDAM's margins need.

    The deployed head has rows of length 1 and no bias: a feature's length scales all logits of an image, so the answer
    is the same, and the saved model is a plain one.
    """

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        features, head = pooled_features(self.model, images), linear_head(self.model)  # [B,C]
        with torch.autocast(images.device.type, enabled=False):  # in bf16, LDAM's scale of 30 makes an error of 0.1
            cosines = F.linear(F.normalize(features.to(head.weight.dtype)), F.normalize(head.weight))  # [B,classes]
        return self.criterion(cosines + 0.0 * head.bias, targets)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        if isinstance(self.criterion, LDAM):
            self.criterion.start_epoch(epoch, epochs)

    @torch.no_grad()
    def deployed(self, model: nn.Module) -> nn.Module:
        copy = deepcopy(model)
        head = linear_head(copy)
        head.weight.copy_(F.normalize(head.weight))
        head.bias.zero_()
        return copy


class HeadOnly(Supervised):
    """Classifier re-training (cRT; Kang et al., ICLR 2020): a new head on frozen features.

    The backbone is in evaluation mode, so its batch statistics are frozen too (in the authors' code they are updated).
    Meant for a class-balanced sampler.
    """

    def __init__(self, model: nn.Module, criterion: nn.Module) -> None:
        super().__init__(model, criterion)
        head = linear_head(model)
        head.reset_parameters()
        model.requires_grad_(False)
        head.requires_grad_(True)

    def train(self, mode: bool = True) -> "HeadOnly":
        super().train(mode)
        self.model.eval()
        return self

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            features = pooled_features(self.model, images)  # [B,C]
        return self.criterion(linear_head(self.model)(features), targets)
