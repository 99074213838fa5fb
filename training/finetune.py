"""Train a classifier on a folder of images or shards, from random weights or from a checkpoint.

Examples:
    python -m training.finetune --preset digits --output runs/digits-nano
    python -m training.finetune --data my_images --arch replknet_31b --weights RepLKNet-31B_ImageNet-1K_224.pth \\
        --lr 5e-5 --layer-decay 0.7 --amp bf16
    python -m training.finetune --data FOLDER_OF_LABELS --val-share 0.2
    torchrun --standalone --nproc-per-node 8 -m training.finetune --preset replknet_31b --data imagenet
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn
from torch.utils.data import Dataset, Subset

from models import ModelConfig, RepLKNet, check_logits, count_classes, create_model, load_weights, save_checkpoint
from models.reparameterize import is_batch_norm
from training import distributed
from training.accuracy import accuracies, count_answers
from training.adversarial import OverfittingWatch
from training.attacks import PixelModel
from training.augment import TwoViews, eval_transform, train_transform
from training.data import label_errors
from training.finetune_config import Config
from training.images import DataError
from training.layout import place
from training.lists import VAL_LIST, write_list
from training.loaders import make_loaders
from training.long_tail import class_counts, long_tail_subset, shot_report
from training.loop import fit
from training.methods import attack_epsilon, balanced_twice, check_method, label_smoothing, make_learner
from training.presets import PRESETS
from training.samplers import class_sampling
from training.script import begin, exit_code, parse_run, starting_config
from training.settings import SettingsError, as_json, check_loop
from training.splits import check_output, ignored, names_digest, open_split

__all__ = ["PRESETS", "Config", "make_model", "parse_arguments", "train"]


def train(config: Config, console: Console | None = None) -> float:
    """Train and write the checkpoint; returns the top-1 of the last epoch on val/, 0..1.

    The checkpoint is that of the last epoch: val/ is not used to choose it (except when FastAT stops), so its accuracy
    is an honest estimate. Raises `ValueError` (`DataError`, `SettingsError`, `WeightsError`) for input that cannot be
    trained on, `RuntimeError` if the loss diverges, `StateError` (an `OSError`) if the run cannot be saved,
    `Terminated` on SIGTERM.
    """
    check_loop(config, PRESETS[config.preset])
    check_method(config)
    holds = {"epsilon": attack_epsilon(config), "label_smoothing": label_smoothing(config)}  # for args.json
    check_output(config, config.output)
    config, console = begin(config, PRESETS, console)

    train_images, val_set = open_split(config)  # their transforms need the model, and that the labels
    labels, targets = train_images.classes, train_images.targets
    if passed_over := ignored(train_images, val_set):
        console.print(passed_over, highlight=False)
    if len(labels) < 2:
        raise DataError(f"{config.data} has 1 class to train on, {labels[0]}: a classifier needs 2")
    for error in label_errors(labels):
        raise DataError(f"{config.data}: {error}")
    model, model_config = make_model(config, labels)
    if config.weights is not None:
        head = "the head is kept" if keeps_head(config, labels) else f"a new head for {len(labels)} classes"
        console.print(f"from {config.weights}: {head}", highlight=False)
    else:
        console.print("from random weights: --weights FILE starts from trained ones", highlight=False)
    config = replace(config, arch=model_config.arch)
    vary = train_transform(model_config, config)
    train_images.transform = TwoViews(vary) if config.loss in ("paco", "gpaco") else vary
    train_set: Dataset[Any] = train_images
    if config.imbalance:
        kept = long_tail_subset(targets, len(labels), config.imbalance)
        console.print(f"--imbalance {config.imbalance:g} keeps {len(kept)} of the {len(targets)} images")
        train_set, targets = Subset(train_images, kept), [targets[index] for index in kept]
    counts = class_counts(targets, len(labels))
    val_set.transform = eval_transform(model_config)
    weights = class_sampling(config.sampler, targets, config.epochs)
    train_loader, val_loader = make_loaders(train_set, val_set, config, weights)

    if config.sync_bn and distributed.world_size() > 1:
        model = distributed.convert_sync_batchnorm(model, config.device)
    if config.grad_checkpointing:
        checkpoint_blocks(model)
    learner = make_learner(model, config, model_config, counts)
    place(learner, config.device)
    watch = None
    if config.adversarial == "fast_at":
        epsilon, drop = attack_epsilon(config) / 255, config.overfitting_drop
        watch = OverfittingWatch(learner, val_set, config.batch_size, epsilon, drop)

    def evaluate(finished: nn.Module) -> dict[str, float]:
        counted = count_answers(finished, val_loader, len(labels), config.device)
        answered, in_top5 = (distributed.all_sum(part) for part in counted)
        metrics = accuracies(answered, in_top5) | shot_report(answered, counts)
        if watch is not None:
            metrics["robust"] = watch(PixelModel(finished, model_config.mean, model_config.std), config.device)
        return metrics

    def save(folder: Path, finished: nn.Module) -> None:
        if config.val_share:
            write_list(folder / VAL_LIST, val_set)
        save_checkpoint(folder, finished, model_config)

    if twice := balanced_twice(config):
        console.print(f"note: {twice}", highlight=False)
    console.print(
        f"{model_config.arch} on {len(targets)} images of {len(labels)} classes at {model_config.image_size} px, "
        f"{len(val_set)} held out, {config.device}"
    )
    metrics = fit(
        learner,
        train_loader,
        config,
        as_json(config, class_counts=counts, labels=labels, image_names=names_digest(train_images, val_set), **holds),
        evaluate=evaluate,
        save=save,
        console=console,
    )
    listed = f", which {config.output / VAL_LIST} lists" if config.val_share else ""
    console.print(f"{config.output}: top-1 {metrics['top1']:.2%} on {len(val_set)} held-out images{listed}")
    return metrics["top1"]


def make_model(config: Config, labels: list[str]) -> tuple[nn.Module, ModelConfig]:
    """Create the model to train. The command line overrides the checkpoint's own config."""
    start = starting_config(config.arch, config.weights)
    model_config = replace(
        start,
        num_classes=len(labels),
        labels=labels,
        image_size=config.image_size or start.image_size,
        crop_pct=config.crop_pct or start.crop_pct,
        crop_mode=config.crop_mode or start.crop_mode,
        mean=list(config.mean) or start.mean,
        std=list(config.std) or start.std,
    )
    model = create_model(model_config.arch, len(labels), model_config.image_size, drop_path_rate=config.drop_path)
    check_logits(model, len(labels), model_config.image_size)
    if config.weights is not None:
        if config.keep_head:
            found = start.num_classes if config.weights.is_dir() else count_classes(start.arch, config.weights)
            if found != len(labels):
                what = f"{config.weights} has {found or 'no'} classes, {config.data} has {len(labels)}"
                raise SettingsError(f"--keep-head: {what}: train a new head (--no-keep-head)")
        load_weights(model, config.weights, skip_head=not keeps_head(config, labels), arch=model_config.arch)
    return model, model_config


def checkpoint_blocks(model: nn.Module) -> None:
    """Have each block keep only its input. Raises `SettingsError` for a timm model that cannot, or has batch norms."""
    option, kind = "--grad-checkpointing", type(model).__name__
    if any(map(is_batch_norm, model.modules())) and not isinstance(model, RepLKNet):  # its own counts them once
        raise SettingsError(
            f"{option}: the batch norms of this {kind} would count their statistics twice; leave it out"
        )
    try:
        model.set_grad_checkpointing()  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:
        raise SettingsError(f"{option}: timm has none for {kind} ({error}); leave it out") from error


def keeps_head(config: Config, labels: list[str]) -> bool:
    """Whether training continues with the head of --weights; otherwise it begins with a new one."""
    same = config.weights is not None and starting_config(config.arch, config.weights).labels == labels
    return (same or config.keep_head) and not config.head_only


def parse_arguments(command_line: list[str] | None = None) -> Config:
    return parse_run(PRESETS, "folder", "training.finetune", __doc__, command_line)


def main() -> int:
    config = parse_arguments()
    return exit_code("finetune", lambda: train(config), config.output)


if __name__ == "__main__":
    sys.exit(main())
