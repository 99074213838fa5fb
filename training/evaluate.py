"""Top-1 accuracy and a per-class table of a checkpoint on a folder of labelled images.

python -m training.evaluate --checkpoint runs/digits-nano --data data/digits/val
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models import load_checkpoint, reparameterize
from training.data import eval_transform, image_folder, make_loader


@dataclass(frozen=True)
class Config:
    """Evaluate a checkpoint."""

    checkpoint: Path
    """Folder with model.safetensors and config.json."""
    data: Path
    """Folder with LABEL/FILE."""
    deploy: bool = False
    """Re-parameterise first: what is served."""
    batch_size: int = 64
    workers: int = 0
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


@torch.inference_mode()
def confusion_matrix(model: nn.Module, loader: DataLoader[Any], num_classes: int, device: str = "cpu") -> Tensor:
    """Counts [num_classes,num_classes], rows the truth, columns the answer. Leaves `model` in the mode it was in."""
    training = model.training
    model.eval()
    counts = torch.zeros(num_classes * num_classes, dtype=torch.int64)
    for images, targets in loader:
        images = images.to(device, memory_format=torch.channels_last)  # [B,3,S,S]
        answers = model(images).argmax(1).cpu()  # [B]
        counts += torch.bincount(targets * num_classes + answers, minlength=num_classes * num_classes)
    model.train(training)
    return counts.view(num_classes, num_classes)


def top1(confusion: Tensor) -> float:
    """Share of right answers, 0..1."""
    return confusion.trace().item() / max(1, int(confusion.sum()))


def evaluate(config: Config) -> tuple[Tensor, list[str]]:
    """The confusion matrix and the label of each row. Raises `DataError`, `WeightsError`, `FileNotFoundError`."""
    model, model_config = load_checkpoint(config.checkpoint)
    model = model.to(config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    labels = model_config.labels or [str(index) for index in range(model_config.num_classes)]
    dataset = image_folder(config.data, eval_transform(model_config), labels)
    loader = make_loader(dataset, config.batch_size, train=False, workers=config.workers)
    network = reparameterize(model) if config.deploy else model
    return confusion_matrix(network, loader, len(labels), config.device), labels


def per_class_table(confusion: Tensor, labels: list[str]) -> Table:
    """One row for each class that has images."""
    table = Table("label", "images", "right", "top-1", "most often taken for")
    for index, label in enumerate(labels):
        row = confusion[index].clone()
        total, right = int(row.sum()), int(row[index])
        if not total:
            continue
        row[index] = 0
        mistaken = f"{labels[int(row.argmax())]} ({int(row.max())})" if row.any() else ""
        table.add_row(label, str(total), str(right), f"{right / total:.2%}", mistaken)
    return table


def main() -> int:
    config = tyro.cli(Config, description=__doc__)
    console = Console()
    try:
        confusion, labels = evaluate(config)
    except (ValueError, OSError) as error:
        Console(stderr=True).print(f"evaluate: {error}", style="red", markup=False)
        return 1
    console.print(per_class_table(confusion, labels))
    console.print(f"top-1 {top1(confusion):.2%}: {int(confusion.trace())} of {int(confusion.sum())} right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
