"""Losses on logits [B,classes], most for long tails. Targets are [B]; some losses take soft ones [B,classes] too."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.long_tail import class_weights, log_prior
from training.settings import SettingsError

MAX_MARGIN, SCALE = 0.5, 30.0  # of LDAM, from its authors' code


class CrossEntropy(nn.Module):
    """Cross entropy of targets [B] (label smoothing, class weights of mean 1) or of soft targets [B,classes].

    The mean is over the batch, so that weights change the share of a class and not only its scale.
    """

    weight: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, weight: Tensor | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        smoothing = self.label_smoothing if targets.dim() == 1 else 0.0  # a mixed batch is smoothed already
        weight = None if self.weight is None else self.weight.to(logits.dtype)
        return F.cross_entropy(logits, targets, weight, label_smoothing=smoothing, reduction="none").mean()


class LogitAdjusted(nn.Module):
    """Cross entropy of logits + tau * log prior (Menon et al., ICLR 2021); takes soft targets too.

    At tau = 1 it is balanced softmax (Ren et al., NeurIPS 2020): the model learns logits for balanced classes.
    """

    shift: Tensor

    def __init__(self, counts: Sequence[int], tau: float = 1.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("shift", tau * log_prior(counts))
        self.cross_entropy = CrossEntropy(label_smoothing)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.cross_entropy(logits + self.shift, targets)


class Focal(nn.Module):
    """-(1 - p)^gamma log p of the true class (Lin et al., ICCV 2017, for a softmax), with class weights of mean 1.

    Raises `SettingsError` for a gamma below 0.
    """

    weight: Tensor | None

    def __init__(self, gamma: float = 2.0, weight: Tensor | None = None) -> None:
        super().__init__()
        if not gamma >= 0:
            raise SettingsError(f"--focal-gamma {gamma}: it must be at least 0 (0 is cross-entropy, the paper has 2)")
        self.gamma = gamma
        self.register_buffer("weight", weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)  # autocast on a CPU does not promote it
        log_p = F.log_softmax(logits, 1, dtype=dtype).gather(1, targets[:, None]).squeeze(1)  # [B]
        missing = (-log_p.expm1()).clamp_min(torch.finfo(log_p.dtype).tiny)  # [B] 1 - p, above 0 for its gradient
        loss = -(missing**self.gamma) * log_p
        if self.weight is not None:
            loss = loss * self.weight[targets].to(loss.dtype)
        return loss.mean()


class LDAM(nn.Module):
    """Label-distribution-aware margins with deferred re-weighting (Cao et al., NeurIPS 2019), on cosines.

    Cross entropy of 30 * (cosine - margin of the true class); margins ~ n^(-1/4), the largest 0.5. From the share
    `drw_start` of the run on (1: never) classes are weighted by their effective number, beta 0.9999; the loss is still
    the mean over the batch, whereas the authors' code divides by the sum of the weights.
    """

    margins: Tensor
    deferred: Tensor

    def __init__(self, counts: Sequence[int], drw_start: float = 0.8) -> None:
        super().__init__()
        self.register_buffer("deferred", class_weights(counts, "effective"))  # raises for an empty class
        margins = torch.tensor(counts, dtype=torch.float64) ** -0.25
        self.register_buffer("margins", (margins * (MAX_MARGIN / margins.max())).float())
        self.drw_start, self.weighted = drw_start, False

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self.weighted = epoch >= self.drw_start * epochs

    def forward(self, cosines: Tensor, targets: Tensor) -> Tensor:
        margin = F.one_hot(targets, cosines.shape[1]) * self.margins.to(cosines.dtype)  # [B,classes]
        weight = self.deferred.to(cosines.dtype) if self.weighted else None
        return F.cross_entropy(SCALE * (cosines - margin), targets, weight, reduction="none").mean()
