"""Measure a checkpoint on labelled images: top-1 and top-5 accuracy, calibration error, and a table of the classes.

Examples:
    python -m training.evaluate --checkpoint runs/digits-nano --data data/digits/val
    python -m training.evaluate --checkpoint runs/mine --data runs/mine/val.csv --predictions predictions.csv
    python -m training.evaluate --arch replknet_31b --checkpoint RepLKNet-31B_ImageNet-1K_384.pth --data imagenet/val \\
        --image-size 384 --crop-pct 1 --crop-mode squash
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from models import ModelConfig, linear_head, reparameterize, save_checkpoint
from models.files import replace_file
from training.accuracy import BINS, accuracies, by_class, calibration_error, count_answers
from training.augment import eval_transform
from training.classifier import InputConfig, load_classifier
from training.data import open_images
from training.distributed import check_device
from training.images import Labelled
from training.layout import place
from training.lists import write_csv
from training.loaders import make_loader
from training.logs import standard_output
from training.long_tail import adjust_logits, shot_report, tau_normalize
from training.outputs import check_file, check_folder, check_no_checkpoint
from training.script import exit_code, parse
from training.settings import ARGUMENTS_FILE, Amp, SettingsError, autocast, check_ranges, json_object

CORRECTIONS = ("tau_norm", "logit_adjustment")  # of the head; --save records them in args.json


@dataclass(frozen=True)
class Config(InputConfig):
    """Evaluate a checkpoint."""

    checkpoint: Path
    """Folder with model.safetensors and config.json, the file in it, or a published file with its --arch"""
    data: Path
    """Folder of LABEL/FILE or of *.tar shards, or the val.csv of a run"""
    deploy: bool = False
    """Evaluate the re-parameterised model, as it is served; the accuracy should be the same"""
    tau_norm: float = 0.0
    """Divide each class's weights in the head by their norm to this power (tau-normalised classifier); 0: off"""
    logit_adjustment: float = 0.0
    """Subtract this times the log frequency of each class in training from its logit; 0: off"""
    save: Path | None = None
    """Save the checkpoint, with --tau-norm or --logit-adjustment applied to its head, to this new folder"""
    csv: Path | None = None
    """Write the table of classes to this CSV file"""
    confusion: Path | None = None
    """Write the confusion matrix to this CSV file: a row for each true label, a column for each answer"""
    predictions: Path | None = None
    """Write each image's file, label, answer, probability and next four answers to this CSV file"""
    amp: Amp = "off"
    """Automatic mixed precision; to reproduce the accuracy that a run logged, use its --amp"""
    batch_size: int = 64
    """Images per forward pass"""
    workers: int = 2
    """Processes that decode images; 0: decode in the main process"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """PyTorch device: cpu, cuda or cuda:N; by default a GPU if PyTorch sees one"""


def arguments_file(checkpoint: Path) -> Path:
    """The path of args.json, in a checkpoint's folder or beside its file."""
    return (checkpoint.parent if checkpoint.is_file() else checkpoint) / ARGUMENTS_FILE


def arguments(checkpoint: Path) -> dict[str, Any]:
    """Read the args.json beside a checkpoint; empty if there is none.

    Raises `SettingsError` for a damaged file.
    """
    path = arguments_file(checkpoint)
    return json_object(path, path.read_bytes()) if path.exists() else {}


def training_counts(checkpoint: Path) -> list[int] | None:
    """The number of training images of each class, if the checkpoint's `arguments` hold it. Raises as `arguments`."""
    return arguments(checkpoint).get("class_counts")


def correct_head(model: nn.Module, config: Config, made: dict[str, Any]) -> None:
    """Apply the corrections for long-tailed data that need no training, in place. `made`: the checkpoint's `arguments`.

    Raises `SettingsError` if the class counts are missing, and for a head that `save_corrected` wrote: a second
    adjustment would count twice, and tau-normalisation would remove the adjustment, which is in the bias.
    """
    once = CORRECTIONS if config.tau_norm else CORRECTIONS[1:] if config.logit_adjustment else ()
    if done := [f"--{name.replace('_', '-')} {made[name]}" for name in once if made.get(name)]:
        origin = f"correct {made['checkpoint']}, which it was made of"
        raise SettingsError(f"the head of {config.checkpoint} has had {' and '.join(done)} already: {origin}")
    if config.tau_norm:
        tau_normalize(linear_head(model), config.tau_norm)
    if config.logit_adjustment:
        if made.get("class_counts") is None:
            raise SettingsError(
                f"--logit-adjustment needs class_counts in {arguments_file(config.checkpoint)}: "
                "take a checkpoint of training.finetune"
            )
        adjust_logits(linear_head(model), made["class_counts"], config.logit_adjustment)


def evaluate(
    config: Config, tell: Callable[[Tensor, list[str], dict[str, float]], object] = lambda *found: None
) -> tuple[Tensor, list[str], dict[str, float]]:
    """Return the confusion matrix, the label of each row, and the `accuracies` with "calibration_error", 0..1.

    `tell` is called with these before any file is written, so that a full disk does not lose them. Raises `DataError`,
    `SettingsError`, `WeightsError`, `FileNotFoundError`, `OSError`.
    """
    check_ranges(config)
    check_device(config.device)
    tables = written_tables(config)
    for option, path in tables.items():
        check_file(option, path)
        if any(other.absolute() == path.absolute() for name, other in tables.items() if name != option):
            raise SettingsError(f"{option} {path}: another table is written to this file, name another")
    if config.save is not None:
        check_no_checkpoint("--save", config.save)
        check_folder("--save", config.save)
    model, model_config, labels = load_classifier(config.checkpoint, config.arch, config.data, **config.inputs)
    made = arguments(config.checkpoint)
    correct_head(model, config, made)
    dataset = open_images(config.data, eval_transform(model_config), labels)
    place(model, config.device)
    loader = make_loader(dataset, config.batch_size, train=False, workers=config.workers)
    network = reparameterize(model) if config.deploy else model
    ranked: list[tuple[Tensor, Tensor]] | None = [] if config.predictions is not None else None
    confusion = torch.zeros(len(labels), len(labels), dtype=torch.int64)
    gaps = torch.zeros(BINS, dtype=torch.float64)
    with autocast(config.device, config.amp):
        counts, in_top5 = count_answers(network, loader, len(labels), config.device, ranked, confusion, gaps)
    metrics = {**accuracies(counts, in_top5), "calibration_error": calibration_error(gaps, len(dataset))}
    tell(confusion, labels, metrics)
    if config.csv is not None:
        header = ("label", "images", "right", "top1", "most_often_taken_for")
        write_csv(config.csv, header, per_class_rows(confusion, labels))
    if config.confusion is not None:
        rows = ([label, *row.tolist()] for label, row in zip(labels, confusion, strict=True))
        write_csv(config.confusion, ["label", *labels], rows)
    if config.predictions is not None and ranked is not None:
        write_csv(config.predictions, prediction_header(len(labels)), prediction_rows(dataset, labels, ranked))
    if config.save is not None:
        save_corrected(config.save, model, model_config, config, made)
    return confusion, labels, metrics


def written_tables(config: Config) -> dict[str, Path]:
    """The paths of the tables to write, by option."""
    named = {"--csv": config.csv, "--confusion": config.confusion, "--predictions": config.predictions}
    return {option: path for option, path in named.items() if path is not None}


def save_corrected(
    folder: Path, model: nn.Module, model_config: ModelConfig, config: Config, made: dict[str, Any]
) -> None:
    """Write the checkpoint, and in args.json its origin and corrections, but no settings: it is not a run."""
    corrections = {name: getattr(config, name) or made.get(name, 0.0) for name in CORRECTIONS}
    save_checkpoint(folder, model, model_config)
    values = {"class_counts": made.get("class_counts"), "checkpoint": str(config.checkpoint), **corrections}
    text = json.dumps(values, indent=2) + "\n"
    replace_file(folder / ARGUMENTS_FILE, lambda path: path.write_text(text))


def prediction_header(num_classes: int) -> list[str]:
    others = (f"answer{place}" for place in range(2, min(5, num_classes) + 1))
    return ["file", "label", "answer", "probability", *others]


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


def per_class_rows(confusion: Tensor, labels: list[str]) -> list[tuple[str, int, int, float, str]]:
    """label, images, right, top-1 (0..1) and what it is most often taken for, of each class that has images."""
    rows = []
    for index, label in enumerate(labels):
        row = confusion[index].clone()
        total, right = int(row.sum()), int(row[index])
        if not total:
            continue
        row[index] = 0
        mistaken = f"{labels[int(row.argmax())]} ({int(row.max())})" if row.any() else ""
        rows.append((label, total, right, right / total, mistaken))
    return rows


def per_class_table(confusion: Tensor, labels: list[str]) -> Table:
    table = Table("label", "images", "right", "top-1", "most often taken for")
    for label, total, right, share, mistaken in per_class_rows(confusion, labels):
        table.add_row(Text(label), str(total), str(right), f"{share:.2%}", Text(mistaken))
    return table


def report(config: Config) -> None:
    console = standard_output()

    def show(confusion: Tensor, labels: list[str], metrics: dict[str, float]) -> None:
        console.print(per_class_table(confusion, labels))
        answered = by_class(confusion)
        images, right = answered.sum(1).tolist()
        console.print(f"top-1 {metrics['top1']:.2%}: {right} of {images} right")
        if "top5" in metrics:
            console.print(f"top-5 {metrics['top5']:.2%}: {round(metrics['top5'] * images)} of {images} right")
        console.print(f"expected calibration error {metrics['calibration_error']:.2%}")
        counts = training_counts(config.checkpoint)
        if counts is not None and (shares := shot_report(answered, counts)):
            console.print("mean over classes: " + ", ".join(f"{name} {value:.2%}" for name, value in shares.items()))

    evaluate(config, show)
    written = [path for path in (*written_tables(config).values(), config.save) if path is not None]
    if written:
        console.print(f"written: {', '.join(map(str, written))}", highlight=False)


def main() -> int:
    config = parse(Config, "training.evaluate", __doc__)
    return exit_code("evaluate", lambda: report(config))


if __name__ == "__main__":
    sys.exit(main())
