"""What an evaluation shows and writes of each class and of each image."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text
from torch import Tensor

from training.images import Labelled

CLASS_COLUMNS = ("label", "images", "right", "top1", "precision", "most_often_taken_for")


def prediction_header(num_classes: int) -> list[str]:
    others = (f"answer{place}" for place in range(2, min(5, num_classes) + 1))
    return ["image", "label", "answer", "probability", *others]


def prediction_rows(
    dataset: Labelled, labels: list[str], ranked: list[tuple[Tensor, Tensor]]
) -> Iterator[tuple[object, ...]]:
    """Yield each file (or SHARD:MEMBER), its label and the answers that `count_answers` ranked, in order."""
    found = (
        (order, share) for batch in ranked for order, share in zip(*(part.tolist() for part in batch), strict=True)
    )
    for name, target, (order, share) in zip(dataset.names, dataset.targets, found, strict=True):
        answer, *others = (labels[index] for index in order)
        yield name, labels[target], answer, f"{share:.6f}", *others


def per_class_rows(confusion: Tensor, labels: list[str]) -> list[tuple[str, int, int, float, float | None, str]]:
    """`CLASS_COLUMNS` of each class that has images: top-1 (its recall) and precision are 0..1, the latter None for a
    class that is never answered.
    """
    rows = []
    answered = confusion.sum(0).tolist()
    for index, label in enumerate(labels):
        row = confusion[index].clone()
        total, right = int(row.sum()), int(row[index])
        if not total:
            continue
        row[index] = 0
        mistaken = f"{labels[int(row.argmax())]} ({int(row.max())})" if row.any() else ""
        precision = right / answered[index] if answered[index] else None
        rows.append((label, total, right, right / total, precision, mistaken))
    return rows


def per_class_table(confusion: Tensor, labels: list[str]) -> Table:
    table = Table("label", "images", "right", "top-1", "precision", "most often taken for")
    for label, total, right, share, precision, mistaken in per_class_rows(confusion, labels):
        shown = "" if precision is None else f"{precision:.2%}"
        table.add_row(Text(label), str(total), str(right), f"{share:.2%}", shown, Text(mistaken))
    return table
