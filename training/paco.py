"""Parametric contrastive learning: PaCo (Cui et al., ICCV 2021) and GPaCo (Cui et al., TPAMI 2023).

The learned centres are the rows of the model's head: each anchor's softmax is over their logits, with the log prior of
the classes, and its similarities to the other view and to a queue of earlier features. Inference uses only the head,
without the prior, so the saved model is a plain one.
"""

from collections.abc import Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import linear_head, pooled_features
from training.distributed import all_gather_rows
from training.long_tail import log_prior
from training.loop import Learner
from training.settings import SettingsError

EMPTY = -1  # label of an empty place in the queue


def paco_loss(
    centre_logits: Tensor,
    similarities: Tensor,
    targets: Tensor,
    contrast_targets: Tensor,
    *,
    prior: Tensor,
    alpha: float,
    smoothing: float = 0.0,
) -> Tensor:
    """The mean over A anchors of -sum_j w_ij log p_ij / sum_j w_ij, j over the centres and M contrasts.

    Args:
        centre_logits: [A,classes], without the prior.
        similarities: [A,M] cosine / temperature. Contrast i, for i < A, is anchor i itself, and is left out.
        targets: [A]. contrast_targets: [M], `EMPTY` for an empty place, which is left out of all sums.
        prior: [classes] log prior.
        alpha: weight w of a contrast of the anchor's class; its centre has 1 - smoothing, the others share the rest.
    """
    anchors, classes = centre_logits.shape
    same_place = torch.arange(similarities.shape[1], device=targets.device) == torch.arange(
        anchors, device=targets.device
    ).unsqueeze(1)
    valid = (contrast_targets != EMPTY) & ~same_place  # [A,M]
    positive = valid & (targets.unsqueeze(1) == contrast_targets)  # [A,M]
    centre_share = F.one_hot(targets, classes).to(centre_logits.dtype)
    if smoothing:
        centre_share = (1 - smoothing) * centre_share + smoothing / (classes - 1) * (1 - centre_share)
    weights = torch.cat([centre_share, alpha * positive.to(centre_logits.dtype)], 1)  # [A,classes+M]
    logits = torch.cat([centre_logits + prior, similarities], 1)
    counted = torch.cat([logits[:, :classes], similarities.masked_fill(~valid, -torch.inf)], 1)
    log_p = logits - counted.logsumexp(1, keepdim=True)
    return (-(weights * log_p).sum(1) / weights.sum(1)).mean()


class FeatureQueue(nn.Module):
    """The last `size` features [size,dim], each of length 1, and their labels; any number may be added at a time."""

    features: Tensor
    labels: Tensor
    position: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(size, dim))
        self.register_buffer("labels", torch.full((size,), EMPTY))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def add(self, features: Tensor, labels: Tensor) -> None:
        size = len(self.labels)
        features, labels = features[-size:], labels[-size:]  # of more than fit, the newest
        places = (self.position + torch.arange(len(labels), device=labels.device)) % size
        self.features[places] = features.to(self.features)
        self.labels[places] = labels
        self.position.copy_((self.position + len(labels)) % size)


class PaCo(Learner):
    """Learner of images [B,2,3,S,S], two views each.

    `generalized` is GPaCo: no momentum encoder, both views are anchors, the projection has three layers. Otherwise the
    second view is a key, from an encoder that follows the first with `momentum`.

    Unlike in the authors' code, both views are augmented alike (theirs: RandAugment for the first; for the second a
    weaker recipe, in GPaCo another RandAugment), keys are not shuffled over the processes, and the projection has no
    batch norm (theirs had one in PaCo). `smoothing` is 0 in their long-tailed GPaCo.

    Raises `SettingsError` for impossible sizes.
    """

    prior: Tensor

    def __init__(
        self,
        model: nn.Module,
        counts: Sequence[int],
        *,
        generalized: bool = False,
        alpha: float = 0.05,
        temperature: float = 0.2,
        queue_size: int = 8192,
        dim: int = 128,
        momentum: float = 0.999,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if queue_size < 1 or dim < 1 or temperature <= 0:
            sizes = f"--paco-queue {queue_size}, --paco-dim {dim}, --paco-temperature {temperature}"
            raise SettingsError(f"{sizes}: all must be above 0")
        width = linear_head(model).in_features
        hidden = [layer for _ in range(2 if generalized else 1) for layer in (nn.Linear(width, width), nn.ReLU())]
        self.model = model
        self.projection = nn.Sequential(*hidden, nn.Linear(width, dim))
        self.generalized, self.alpha, self.temperature = generalized, alpha, temperature
        self.momentum, self.smoothing = momentum, smoothing
        self.queue = FeatureQueue(queue_size, dim)
        self.register_buffer("prior", log_prior(counts))
        self.key_model: nn.Module | None = None
        self.key_projection: nn.Module | None = None
        if not generalized:
            self.key_model = deepcopy(model).requires_grad_(False)
            self.key_projection = deepcopy(self.projection).requires_grad_(False)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """images [B,2,3,S,S], targets [B] -> loss []."""
        first, second = images.unbind(1)
        logits, queries = self._encode(self.model, self.projection, first)
        if self.key_model is None or self.key_projection is None:
            other_logits, keys = self._encode(self.model, self.projection, second)
            logits, anchors = torch.cat([logits, other_logits]), torch.cat([queries, keys])
            anchor_targets = torch.cat([targets, targets])
        else:
            with torch.no_grad():
                _, keys = self._encode(self.key_model, self.key_projection, second)
            anchors, anchor_targets = queries, targets
        contrasts = torch.cat([queries, keys, self.queue.features.clone()])  # [2B+K,dim]
        contrast_targets = torch.cat([targets, targets, self.queue.labels.clone()])
        with torch.autocast(images.device.type, enabled=False):  # in bf16, the temperature makes an error of 0.02
            similarities = anchors @ contrasts.T / self.temperature
        loss = paco_loss(
            logits.float(),
            similarities,
            anchor_targets,
            contrast_targets,
            prior=self.prior,
            alpha=self.alpha,
            smoothing=self.smoothing,
        )
        self.queue.add(all_gather_rows(keys.detach()), all_gather_rows(targets))
        return loss

    @staticmethod
    def _encode(model: nn.Module, projection: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the centres [B,classes] and features of length 1 [B,dim], float32."""
        pooled = pooled_features(model, images)
        return linear_head(model)(pooled), F.normalize(projection(pooled).float(), dim=1)

    @torch.no_grad()
    def after_step(self) -> None:
        if self.key_model is None or self.key_projection is None:
            return
        pairs = [(self.key_model, self.model), (self.key_projection, self.projection)]
        for key, query in pairs:
            for theirs, ours in zip(key.parameters(), query.parameters(), strict=True):
                theirs.lerp_(ours, 1 - self.momentum)
