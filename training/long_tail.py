"""Long-tailed data: build it, weigh it, report on it, and correct a trained classifier for it."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from training.settings import SettingsError

MANY, FEW = 100, 20  # training images: above MANY, below FEW, and medium from FEW to MANY (Liu et al., CVPR 2019)
SHOTS = ("balanced", "many", "medium", "few")  # the keys of `shot_report`
BETA = 0.9999  # of the effective number of samples
ClassWeights = Literal["none", "inverse", "inverse_sqrt", "effective"]


def long_tail_counts(largest: int, classes: int, imbalance: float) -> list[int]:
    """n_i = largest * imbalance^(-i / (classes - 1)), rounded down, at least 1 (Cui et al., CVPR 2019).

    `imbalance` is the first count divided by the last. Raises `SettingsError` below 1.
    """
    if not imbalance >= 1:
        raise SettingsError(f"--imbalance {imbalance}: it must be at least 1: the largest class over the smallest")
    powers = [index / max(1, classes - 1) for index in range(classes)]
    return [max(1, int(largest * imbalance**-power + 1e-9)) for power in powers]


def long_tail_subset(targets: Sequence[int], classes: int, imbalance: float, seed: int = 0) -> list[int]:
    """Indices of a long-tailed part of a data set: class i keeps its `long_tail_counts`, drawn with `seed`.

    The largest count is that of the smallest class, so the shape is exact whatever the classes' sizes.
    """
    labels = np.asarray(targets)
    sizes = class_counts(targets, classes)
    _check_counts(sizes)
    counts = long_tail_counts(min(sizes), classes, imbalance)
    rng = np.random.RandomState(seed)
    of_classes = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    chosen = [rng.permutation(images)[:count] for images, count in zip(of_classes, counts, strict=True)]
    return np.sort(np.concatenate(chosen)).tolist()


def class_counts(targets: Sequence[int], classes: int) -> list[int]:
    """Training images of each class."""
    return np.bincount(np.asarray(targets), minlength=classes).tolist()


def class_weights(counts: Sequence[int], rule: ClassWeights) -> Tensor | None:
    """Return the classes' loss weights of mean 1 [classes], or None for "none".

    inverse: 1/n. inverse_sqrt: 1/sqrt(n). effective: (1 - beta)/(1 - beta^n), the inverse of the effective number of
    samples, beta 0.9999 (Cui et al., CVPR 2019). Raises `SettingsError` for an empty class and an unknown rule.
    """
    if rule == "none":
        return None
    _check_counts(counts)
    n = torch.tensor(counts, dtype=torch.float64)
    if rule == "inverse":
        weights = 1 / n
    elif rule == "inverse_sqrt":
        weights = n.rsqrt()
    elif rule == "effective":
        weights = (1 - BETA) / (1 - BETA**n)
    else:
        raise SettingsError(f"--class-weights {rule}: choose none, inverse, inverse_sqrt or effective")
    return (weights / weights.mean()).float()


def log_prior(counts: Sequence[int]) -> Tensor:
    """Return the log of the classes' training shares [classes]. Raises `SettingsError` for an empty class."""
    _check_counts(counts)
    n = torch.tensor(counts, dtype=torch.float64)
    return (n / n.sum()).log().float()


def _check_counts(counts: Sequence[int]) -> None:
    if empty := [index for index, count in enumerate(counts) if count < 1]:
        raise SettingsError(f"class index {empty[0]} has no training image: add some, or leave the class out")


@torch.no_grad()
def tau_normalize(head: nn.Linear, tau: float) -> None:
    """Divide the weight's rows by their length to the power tau and zero the bias, in place (Kang et al., ICLR 2020).

    tau = 0 leaves the weight, 1 makes all rows equally long.
    """
    norms = head.weight.norm(dim=1, keepdim=True).clamp_min(1e-12)  # [classes,1]
    head.weight.div_(norms**tau)
    head.bias.zero_()


@torch.no_grad()
def adjust_logits(head: nn.Linear, counts: Sequence[int], tau: float) -> None:
    """Post-hoc logit adjustment (Menon et al., ICLR 2021), in place: logits - tau * log prior, in the bias."""
    head.bias.sub_(tau * log_prior(counts).to(head.bias))


def shot_report(answered: Tensor, counts: Sequence[int]) -> dict[str, float]:
    """Return mean class accuracies, 0..1: "balanced" over all classes, "many", "medium" and "few" by training images.

    `answered` [2,classes]: test images and right answers. A group without a class that has test images is left out. The
    report is empty if the largest class has at most 1.5 times the images of the smallest.
    """
    if max(counts) <= 1.5 * min(counts):
        return {}
    total, right = answered
    recall = right / total.clamp_min(1)
    n = torch.tensor(list(counts))
    groups = {
        "balanced": torch.ones_like(n, dtype=torch.bool),
        "many": n > MANY,
        "medium": (n >= FEW) & (n <= MANY),
        "few": n < FEW,
    }
    seen = total > 0
    return {name: recall[group & seen].mean().item() for name, group in groups.items() if (group & seen).any()}
