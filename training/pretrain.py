"""Pre-train an encoder without labels, by masked image modelling (SimMIM; token or sparse masks).

Examples:
    python -m training.pretrain --preset photos --output runs/pretrain-photos
    torchrun --standalone --nproc-per-node 8 -m training.pretrain --preset simmim --data imagenet --arch replknet_31b
    python -m training.finetune --data my_images --weights runs/pretrain-photos
"""

import sys
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models import (
    ARCHITECTURES,
    MaskedPretrainer,
    ModelConfig,
    create_replknet,
    load_weights,
    save_checkpoint,
)
from models.modes import evaluating
from training import distributed
from training.augment import eval_transform
from training.layout import place
from training.loaders import make_loaders
from training.loop import Learner, fit
from training.masking import MaskedImages, MaskGenerator, pretrain_transform
from training.pictures import write_reconstructions
from training.pretrain_config import PRESETS, Config, check
from training.samplers import evenly
from training.script import begin, exit_code, parse_run, starting_config
from training.settings import SettingsError, as_json
from training.splits import check_output, ignored, names_digest, open_unlabelled_split

__all__ = ["PRESETS", "Config", "make_model", "parse_arguments", "train"]


class Pretraining(Learner):
    """A learner with the loss of a masked batch; only the model's encoder is saved."""

    model: MaskedPretrainer

    def __init__(self, model: MaskedPretrainer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        return self.model(images, masks)


def train(config: Config, console: Console | None = None) -> float:
    """Train and write the encoder's checkpoint; returns the last epoch's loss on val/.

    Raises `ValueError` (`DataError`, `SettingsError`, `WeightsError`) for input that cannot be trained on,
    `RuntimeError` if the loss diverges, `StateError` (an `OSError`) if the run cannot be saved, `Terminated` on
    SIGTERM.
    """
    check(config)
    check_output(config, config.output)
    config, console = begin(config, PRESETS, console)

    train_images, val_images = open_unlabelled_split(config)
    if passed_over := ignored(train_images, val_images):
        console.print(passed_over, highlight=False)
    model, model_config = make_model(config)
    config = replace(config, arch=model_config.arch)
    masks = MaskGenerator(config.image_size, config.mask_patch, config.mask_ratio)
    vary = pretrain_transform(model_config, config.min_crop_area, config.flip)
    train_set = MaskedImages(train_images, vary, masks)
    val_set = MaskedImages(val_images, eval_transform(model_config), masks, config.seed)
    train_loader, val_loader = make_loaders(train_set, val_set, config)
    if config.sync_bn and distributed.world_size() > 1:
        model = distributed.convert_sync_batchnorm(model, config.device)
    if config.grad_checkpointing:
        model.encoder.set_grad_checkpointing()
    learner = Pretraining(model)
    place(learner, config.device)

    def evaluate(finished: nn.Module) -> dict[str, float]:
        assert isinstance(finished, MaskedPretrainer)
        value = evaluation_loss(finished, val_loader, config.device)
        if distributed.rank() == 0 and config.pictures:
            shown = [val_set[index] for index in evenly(len(val_set), config.pictures)]
            images, chosen = (torch.stack(parts).to(config.device) for parts in zip(*shown, strict=True))
            write_reconstructions(config.output / "reconstructions.png", finished, images, chosen, model_config)
        return {"val_loss": value}

    console.print(
        f"{model_config.arch} on {len(train_set)} images at {config.image_size} px, {masks.count} of {masks.side**2} "
        f"patches of {config.mask_patch} px masked ({config.mask_mode}), {len(val_set)} held out, {config.device}"
    )
    metrics = fit(
        learner,
        train_loader,
        config,
        as_json(config, image_names=names_digest(train_images, val_images)),
        evaluate=evaluate,
        save=lambda folder, finished: save_checkpoint(folder, finished.encoder, model_config),  # type: ignore[arg-type]
        console=console,
    )
    console.print(f"{config.output}: loss {metrics['val_loss']:.4f} on {len(val_set)} held-out images")
    return metrics["val_loss"]


def make_model(config: Config) -> tuple[MaskedPretrainer, ModelConfig]:
    """Create the model to train and its checkpoint's config, without labels, so that fine-tuning makes a new head."""
    if config.arch and config.arch not in ARCHITECTURES:
        raise SettingsError(f"--arch {config.arch}: choose one of {', '.join(ARCHITECTURES)}")
    start = starting_config(config.arch, config.weights)
    if start.arch not in ARCHITECTURES:
        raise SettingsError(f"--weights {config.weights} holds {start.arch}: only RepLKNets are pre-trained")
    model_config = replace(
        start,
        num_classes=1,
        labels=None,
        image_size=config.image_size,
        mean=list(config.mean) or start.mean,
        std=list(config.std) or start.std,
    )
    encoder = create_replknet(model_config.arch, 1, drop_path_rate=config.drop_path)
    if config.weights is not None:
        load_weights(encoder, config.weights, skip_head=True, arch=model_config.arch)
    return MaskedPretrainer(encoder, config.mask_mode, config.loss, config.target_norm, config.window), model_config


@torch.no_grad()
def evaluation_loss(model: MaskedPretrainer, loader: DataLoader[Any], device: str) -> float:
    """Return the mean over the images of all processes, with running statistics and the images' fixed masks."""
    total = torch.zeros(2, dtype=torch.float64, device=device)
    with evaluating(model):
        for images, masks in loader:
            value = model(images.to(device), masks.to(device))
            total += torch.stack([value.double() * len(images), value.new_tensor(len(images), dtype=torch.float64)])
    loss_sum, count = distributed.all_sum(total).tolist()
    return loss_sum / count


def parse_arguments(command_line: list[str] | None = None) -> Config:
    return parse_run(PRESETS, "simmim", "training.pretrain", __doc__, command_line)


def main() -> int:
    config = parse_arguments()
    return exit_code("pretrain", lambda: train(config), config.output)


if __name__ == "__main__":
    sys.exit(main())
