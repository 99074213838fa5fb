"""A classifier's answers to labelled images, and how many of them are right."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models.modes import evaluating
from training.settings import SettingsError


def answers(logits: Tensor) -> Tensor:
    """[B,classes] -> the class of the highest logit [B]. Raises `SettingsError` where one is NaN or infinite."""
    if broken := int((~logits.isfinite()).any(1).sum()):
        raise SettingsError(
            f"{broken} of {len(logits)} images have logits that are NaN or infinite, which is no answer: take another "
            "checkpoint, or lower --tau-norm and --logit-adjustment where they are given, or --lr in training"
        )
    return logits.argmax(1)


@torch.inference_mode()
def count_answers(
    model: nn.Module,
    loader: DataLoader[Any],
    num_classes: int,
    device: str = "cpu",
    ranked: list[tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """The confusion matrix [num_classes,num_classes], rows the truth, columns the answer; and how many images have
    their class among the five highest logits []. Raises as `answers`.

    To `ranked` are appended the classes of each batch's images from the highest logit down [B,5 at most], and the
    probability of the first [B].
    """
    counts, in_top5 = torch.zeros(num_classes * num_classes, dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    with evaluating(model):
        for images, targets in loader:
            logits = model(images.to(device, memory_format=torch.channels_last)).cpu()  # [B,num_classes]
            places = targets * num_classes + answers(logits)  # [B]
            counts.index_add_(0, places, torch.ones_like(places))  # a matrix of its own for each batch would take long
            in_top5 += (logits.topk(min(5, num_classes)).indices == targets[:, None]).sum()
            if ranked is not None:
                order = logits.sort(dim=1, descending=True, stable=True).indices[:, :5]  # equal ones in argmax's order
                order = order.clone()  # a view would keep all num_classes of them
                ranked.append((order, logits.float().softmax(1).amax(1)))
    return counts.view(num_classes, num_classes), in_top5


def top1(confusion: Tensor) -> float:
    """Share of right answers, 0..1."""
    return confusion.trace().item() / max(1, int(confusion.sum()))


def accuracies(confusion: Tensor, in_top5: Tensor) -> dict[str, float]:
    """ "top1" and, of more than five classes, "top5", 0..1."""
    top5 = {"top5": in_top5.item() / max(1, int(confusion.sum()))} if len(confusion) > 5 else {}
    return {"top1": top1(confusion), **top5}
