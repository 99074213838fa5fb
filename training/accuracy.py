"""A classifier's answers to labelled images: how many of them are right, and how far their probabilities say so."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.modes import evaluating

BINS = 15  # of equal width, each with its upper edge, for the calibration error (Guo et al., ICML 2017)
EDGES = torch.arange(1, BINS) / BINS


def answers(logits: Tensor) -> Tensor:
    """Return the class of the highest logit, [B,classes] -> [B]. Raises `ValueError` for a NaN or infinite logit."""
    if broken := int((~logits.isfinite()).any(1).sum()):
        raise ValueError(
            f"{broken} of {len(logits)} images have logits that are NaN or infinite, which is no answer: take another "
            "checkpoint, or lower --tau-norm and --logit-adjustment where they are given, or --lr in training"
        )
    return logits.argmax(1)


class Calibration:
    """How well the probabilities of the images added say which answers are right: `error` and `nll`."""

    def __init__(self) -> None:
        self.images, self.loss = 0, 0.0
        self.gaps = torch.zeros(BINS, dtype=torch.float64)  # right answers less their probabilities, by bin

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """Add images by their logits [B,classes] and classes [B]."""
        logits = logits.float()
        probability, answered = logits.softmax(1).amax(1), logits.argmax(1)  # [B]
        self.gaps.index_add_(0, torch.bucketize(probability, EDGES), (answered == targets).to(self.gaps) - probability)
        self.loss += F.cross_entropy(logits, targets, reduction="none").sum(dtype=torch.float64).item()
        self.images += len(targets)

    @property
    def error(self) -> float:
        """The expected calibration error, 0..1: the mean over the images of the distance, in their bin, between the
        share of right answers and the mean probability.
        """
        return self.gaps.abs().sum().item() / max(1, self.images)

    @property
    def nll(self) -> float:
        """The negative log-likelihood of an image's class, in nats, on average over the images."""
        return self.loss / max(1, self.images)


@torch.inference_mode()
def logits_of(model: nn.Module, batches: Iterable[Any], device: str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits of each batch of images in evaluation mode, on the CPU [B,classes], and their classes [B]."""
    with evaluating(model):
        for images, targets in batches:
            yield model(images.to(device)).cpu(), targets


@torch.inference_mode()
def count_answers(
    model: nn.Module,
    batches: Iterable[Any],
    num_classes: int,
    device: str = "cpu",
    ranked: list[tuple[Tensor, Tensor]] | None = None,
    confusion: Tensor | None = None,
    calibration: Calibration | None = None,
) -> tuple[Tensor, Tensor]:
    """Count the images of each class and the right answers among them [2,num_classes], and the images whose class is
    among the five highest logits []. Raises as `answers`.

    If given, `confusion` [num_classes,num_classes] (rows: the truth, columns: the answer) counts the images too; for
    tens of thousands of classes it takes gigabytes. All images are added to `calibration`, if given. For each batch,
    the classes from the highest logit down [B,5 at most] and the probability of the first [B] are appended to `ranked`,
    if given.
    """
    counts, in_top5 = torch.zeros(2, num_classes, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    for logits, targets in logits_of(model, batches, device):
        answered, ones = answers(logits), torch.ones_like(targets)  # [B]
        counts.index_add_(1, targets, torch.stack([ones, (answered == targets).long()]))
        if confusion is not None:  # in place: to add a matrix for each batch would be slow
            confusion.view(-1).index_add_(0, targets * num_classes + answered, ones)
        in_top5 += (logits.topk(min(5, num_classes)).indices == targets[:, None]).sum()
        if calibration is not None:
            calibration.add(logits, targets)
        if ranked is not None:
            order = logits.sort(dim=1, descending=True, stable=True).indices[:, :5]  # equal ones in argmax's order
            order = order.clone()  # a view would keep all num_classes columns
            ranked.append((order, logits.float().softmax(1).amax(1)))
    return counts, in_top5


def by_class(confusion: Tensor) -> Tensor:
    """Return the images and right answers of each class [2,classes], as `count_answers`, from a confusion matrix."""
    return torch.stack([confusion.sum(1), confusion.diagonal()])


def top1(counts: Tensor) -> float:
    """Return the share of right answers, 0..1. `counts` [2,classes]: images and right answers of each class."""
    images, right = counts.sum(1).tolist()
    return right / max(1, images)


def accuracies(counts: Tensor, in_top5: Tensor) -> dict[str, float]:
    """Return "top1" and, for more than five classes, "top5", 0..1; `counts` [2,classes] is as in `top1`."""
    top5 = {"top5": in_top5.item() / max(1, int(counts[0].sum()))} if counts.shape[1] > 5 else {}
    return {"top1": top1(counts), **top5}
