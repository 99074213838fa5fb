"""Measure a checkpoint on labelled images: top-1 and top-5 accuracy, calibration error, and a table of the classes.

Examples:
    python -m training.evaluate --checkpoint runs/digits-nano --data data/digits/val
    python -m training.evaluate --checkpoint runs/mine --data runs/mine/val.csv --predictions predictions.csv
    python -m training.evaluate --arch replknet_31b --checkpoint RepLKNet-31B_ImageNet-1K_384.pth --data imagenet/val \\
        --image-size 384 --crop-pct 1 --crop-mode squash
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from models import ModelConfig, linear_head, reparameterize, save_checkpoint
from models.files import replace_file, write_file
from training.accuracy import Calibration, accuracies, by_class, count_answers
from training.classifier import LabelledConfig, open_labelled
from training.distributed import check_device
from training.layout import place
from training.lists import write_csv
from training.loaders import make_loader
from training.logs import shown_progress, standard_output
from training.long_tail import SHOTS, adjust_logits, shot_report, tau_normalize
from training.outputs import check_file, check_folder, check_no_checkpoint
from training.script import exit_code, parse
from training.settings import ARGUMENTS_FILE, Amp, SettingsError, autocast, check_ranges, json_object
from training.tables import CLASS_COLUMNS, per_class_rows, per_class_table, prediction_header, prediction_rows

# Of the head, with the value that stands for none; args.json records them.
CORRECTIONS = {"tau_norm": 0.0, "logit_adjustment": 0.0, "temperature": 1.0}
OPTIONS = {"tau_norm": "--tau-norm", "logit_adjustment": "--logit-adjustment"}


@dataclass(frozen=True)
class Config(LabelledConfig):
    """Evaluate a checkpoint."""

    deploy: bool = False
    """Evaluate the re-parameterised model, as it is served; the accuracy should be the same"""
    tau_norm: float = 0.0
    """Divide each class's weights in the head by their norm to this power (tau-normalised classifier); 0: off"""
    logit_adjustment: float = 0.0
    """Subtract this times the log frequency of each class in training from its logit; 0: off"""
    save: Path | None = None
    """Save the checkpoint, with --tau-norm or --logit-adjustment applied to its head, to this new folder"""
    json: Path | None = None
    """Write all figures that are shown to this JSON file"""
    csv: Path | None = None
    """Write the table of classes to this CSV file"""
    confusion: Path | None = None
    """Write the confusion matrix to this CSV file: a row for each true label, a column for each answer"""
    predictions: Path | None = None
    """Write each image's name, label, answer, probability and next four answers to this CSV file"""
    amp: Amp = "off"
    """Automatic mixed precision; to reproduce the accuracy that a run logged, use its --amp"""


def arguments_file(checkpoint: Path) -> Path:
    """The path of args.json, in a checkpoint's folder or beside its file."""
    return (checkpoint.parent if checkpoint.is_file() else checkpoint) / ARGUMENTS_FILE


def arguments(checkpoint: Path) -> dict[str, Any]:
    """Read the args.json beside a checkpoint; empty if there is none.

    Raises `ValueError` for a damaged file.
    """
    path = arguments_file(checkpoint)
    return json_object(path, path.read_bytes()) if path.exists() else {}


def correct_head(model: nn.Module, config: Config, made: dict[str, Any]) -> None:
    """Apply the corrections for long-tailed data that need no training, in place. `made`: the checkpoint's `arguments`.

    Raises `SettingsError` if the class counts are missing, and for a head that `save_corrected` wrote: a second
    adjustment would count twice, and tau-normalisation would remove the adjustment, which is in the bias, and the
    temperature.
    """
    once = CORRECTIONS if config.tau_norm else ("logit_adjustment",) if config.logit_adjustment else ()
    had = {name: value for name, none in CORRECTIONS.items() if (value := made.get(name, none)) != none}
    if done := [f"{OPTIONS.get(name, name)} {had[name]}" for name in once if name in had]:
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


def evaluate(config: Config, console: Console | None = None) -> tuple[Tensor, list[str], dict[str, float]]:
    """Return the confusion matrix, the label of each row, and the figures: `accuracies`, calibration, `shot_report`.

    `console` shows the progress, and these before any file is written, so that a full disk does not lose them. Raises
    `DataError`, `SettingsError`, `WeightsError`, `FileNotFoundError`, `OSError`.
    """
    console = console or Console(quiet=True)
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
    model, model_config, dataset = open_labelled(config)
    labels, made = dataset.classes, arguments(config.checkpoint)
    correct_head(model, config, made)
    place(model, config.device)
    loader = make_loader(dataset, config.batch_size, train=False, workers=config.workers)
    network = reparameterize(model) if config.deploy else model
    ranked: list[tuple[Tensor, Tensor]] | None = [] if config.predictions is not None else None
    confusion = torch.zeros(len(labels), len(labels), dtype=torch.int64)
    calibration = Calibration()
    with autocast(config.device, config.amp):
        batches, several = shown_progress(loader, "evaluating", console), (ranked, confusion, calibration)
        counts, in_top5 = count_answers(network, batches, len(labels), config.device, *several)
    metrics = {**accuracies(counts, in_top5), "calibration_error": calibration.error, "nll": calibration.nll}
    if made.get("class_counts") is not None:
        metrics |= shot_report(counts, made["class_counts"])
    show(console, confusion, labels, metrics)
    if config.csv is not None:
        write_csv(config.csv, CLASS_COLUMNS, per_class_rows(confusion, labels))
    if config.confusion is not None:
        rows = ([label, *row.tolist()] for label, row in zip(labels, confusion, strict=True))
        write_csv(config.confusion, ["label", *labels], rows)
    if config.predictions is not None and ranked is not None:
        write_csv(config.predictions, prediction_header(len(labels)), prediction_rows(dataset, labels, ranked))
    if config.json is not None:
        write_json(config.json, config, confusion, labels, metrics)
    if config.save is not None:
        done = {"tau_norm": config.tau_norm, "logit_adjustment": config.logit_adjustment}
        save_corrected(config.save, model, model_config, config.checkpoint, made, done)
    return confusion, labels, metrics


def written_tables(config: Config) -> dict[str, Path]:
    """The paths of the tables to write, by option."""
    named = ("json", "csv", "confusion", "predictions")
    return {f"--{name}": path for name in named if (path := getattr(config, name)) is not None}


def write_json(path: Path, config: Config, confusion: Tensor, labels: list[str], metrics: dict[str, float]) -> None:
    settings = {name: getattr(config, name) for name in ("deploy", "tau_norm", "logit_adjustment", "amp")}
    images, right = by_class(confusion).sum(1).tolist()
    values = {
        **{"checkpoint": str(config.checkpoint), "data": str(config.data), **config.inputs, **settings},
        **{"images": images, "right": right, **metrics},
        "classes": [dict(zip(CLASS_COLUMNS, row, strict=True)) for row in per_class_rows(confusion, labels)],
    }
    text = json.dumps(values, indent=2) + "\n"
    write_file(path, lambda to: to.write_text(text))


def save_corrected(
    folder: Path,
    model: nn.Module,
    model_config: ModelConfig,
    checkpoint: Path,
    made: dict[str, Any],
    done: dict[str, float],
) -> None:
    """Write the model, and in args.json that it was made of `checkpoint`, with the corrections `done` now and those in
    that one's arguments `made`, but no settings: it is not a run.
    """
    corrections = {name: done.get(name) or made.get(name, none) for name, none in CORRECTIONS.items()}
    save_checkpoint(folder, model, model_config)
    values = {"class_counts": made.get("class_counts"), "checkpoint": str(checkpoint), **corrections}
    text = json.dumps(values, indent=2) + "\n"
    replace_file(folder / ARGUMENTS_FILE, lambda path: path.write_text(text))


def show(console: Console, confusion: Tensor, labels: list[str], metrics: dict[str, float]) -> None:
    console.print(per_class_table(confusion, labels))
    images, right = by_class(confusion).sum(1).tolist()
    console.print(f"top-1 {metrics['top1']:.2%}: {right} of {images} right")
    if "top5" in metrics:
        console.print(f"top-5 {metrics['top5']:.2%}: {round(metrics['top5'] * images)} of {images} right")
    error, nll = metrics["calibration_error"], metrics["nll"]
    console.print(f"expected calibration error {error:.2%}, negative log-likelihood {nll:.4f}")
    if shares := [f"{name} {metrics[name]:.2%}" for name in SHOTS if name in metrics]:
        console.print("mean over classes: " + ", ".join(shares))


def report(config: Config) -> None:
    console = standard_output()
    evaluate(config, console)
    written = [path for path in (*written_tables(config).values(), config.save) if path is not None]
    if written:
        console.print(f"written: {', '.join(map(str, written))}", highlight=False)


def main() -> int:
    config = parse(Config, "training.evaluate", __doc__)
    return exit_code("evaluate", lambda: report(config))


if __name__ == "__main__":
    sys.exit(main())
