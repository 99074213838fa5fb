"""Train a classifier on a folder of images, from random weights or from a checkpoint.

python -m training.finetune --preset digits --output runs/digits-nano
python -m training.finetune --data my_images --arch replknet_31b --weights RepLKNet-31B_ImageNet-1K_224.pth
"""

import argparse
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

from models import ModelConfig, RepLKNet, create_model, load_config, load_weights, save_checkpoint
from training.data import Augmentation, eval_transform, image_folder, make_loader, train_transform, write_digits
from training.evaluate import confusion_matrix, top1

FILES = ("args.json", "log.jsonl", "config.json", "model.safetensors")  # the model comes last: it says "finished"


@dataclass(frozen=True)
class Config:
    """Fine-tune a RepLKNet on a folder of images."""

    preset: Literal["folder", "digits"] = "folder"
    """Where the defaults come from."""
    output: Path = Path("runs/finetune")
    """Folder of the checkpoint; the run in progress is in its last/."""
    data: Path = Path("data/images")
    """Folder with train/LABEL/FILE and val/LABEL/FILE."""
    arch: str = "replknet_small"
    """Name in models.ARCHITECTURES; a checkpoint folder in --weights brings its own."""
    weights: Path | None = None
    """Checkpoint folder, .safetensors or .pth to start from; the head is kept if the labels are the same."""
    image_size: int = 0
    """Pixels; 0, like crop_pct 0 and an empty mean and std: the checkpoint's or the architecture's."""
    crop_pct: float = 0.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augmentation: Augmentation = "crop"
    epochs: int = 30
    batch_size: int = 64
    lr: float = 4e-4
    """Peak learning rate of AdamW, after the warm-up; it falls to 1 % of it on a cosine."""
    warmup_epochs: float = 2.0
    weight_decay: float = 0.05
    """Of convolution and linear weights; biases and batch norms have none."""
    drop_path: float = 0.1
    label_smoothing: float = 0.1
    ema_decay: float = 0.999
    """Of the averaged weights, which are what is evaluated and saved; 0: the weights themselves."""
    seed: int = 0
    workers: int = 2
    """Processes that decode."""
    threads: int = 0
    """CPU threads that compute; 0: all."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"


PRESETS = {
    "folder": Config(),
    "digits": Config(
        preset="digits",
        output=Path("runs/digits-nano"),
        data=Path("data/digits"),
        arch="replknet_nano",
        image_size=32,
        crop_pct=1.0,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        augmentation="affine",
        lr=4e-3,
        drop_path=0.05,
        ema_decay=0.99,
        workers=1,
        threads=1,  # on maps this small a second thread gains little and, on a busy machine, loses much
    ),
}


def train(config: Config, console: Console | None = None) -> float:
    """Train and write the checkpoint; returns the top-1 of the last epoch on val/, 0..1.

    The checkpoint is that of the last epoch: val/ chooses nothing, so its accuracy is an honest estimate. Raises
    `ValueError` (`DataError`, `WeightsError`) for input that cannot be trained on, `RuntimeError` if the loss diverges.
    """
    console = console or Console()
    if config.preset == "digits" and config.data == PRESETS["digits"].data:
        write_digits(config.data)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    labels = image_folder(config.data / "train", None).classes
    model, model_config = make_model(config, labels)
    model = model.to(config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    train_set = image_folder(config.data / "train", train_transform(model_config, config.augmentation), labels)
    val_set = image_folder(config.data / "val", eval_transform(model_config), labels)
    pin = config.device.startswith("cuda")
    loading: dict[str, Any] = {"workers": config.workers, "seed": config.seed, "pin_memory": pin}
    train_loader = make_loader(train_set, config.batch_size, train=True, **loading)
    val_loader = make_loader(val_set, config.batch_size, train=False, **loading)

    steps = config.epochs * len(train_loader)
    optimizer = torch.optim.AdamW(param_groups_weight_decay(model, config.weight_decay), lr=config.lr, fused=True)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=steps,
        lr_min=config.lr / 100,
        warmup_t=min(steps - 1, int(config.warmup_epochs * len(train_loader))),
        warmup_lr_init=config.lr / 100,
        t_in_epochs=False,
    )
    ema = ModelEmaV3(model, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
    averaged = ema.module if ema else model

    last = config.output / "last"
    last.mkdir(parents=True, exist_ok=True)
    (last / "args.json").write_text(arguments(config))
    console.print(
        f"{model_config.arch} on {len(train_set)} images of {len(labels)} classes at {model_config.image_size} px, "
        f"{len(val_set)} held out, {config.device}"
    )
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn())
    progress = Progress(TextColumn("{task.description}"), *columns, console=console)
    accuracy, step = 0.0, 0
    with progress, (last / "log.jsonl").open("w") as log:
        bar = progress.add_task("starting", total=steps)
        for epoch in range(1, config.epochs + 1):
            model.train()
            started, seen, total_loss = time.perf_counter(), 0, 0.0
            for images, targets in train_loader:  # [B,3,S,S], [B]
                images = images.to(config.device, non_blocking=True, memory_format=torch.channels_last)
                targets = targets.to(config.device, non_blocking=True)
                scheduler.step_update(step)
                loss = F.cross_entropy(model(images), targets, label_smoothing=config.label_smoothing)
                if not math.isfinite(loss.item()):
                    raise RuntimeError(
                        f"the loss is {loss.item()} in step {step + 1}, epoch {epoch}: lower --lr {config.lr}"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                step += 1
                if ema:
                    ema.update(model, step=step)
                seen += len(images)
                total_loss += loss.item() * len(images)
                speed = seen / (time.perf_counter() - started)
                progress.update(bar, advance=1, description=f"epoch {epoch}/{config.epochs}  {speed:4.0f} images/s")
            confusion = confusion_matrix(averaged, val_loader, len(labels), config.device)
            accuracy = top1(confusion)
            save_checkpoint(last, averaged, model_config)
            record = {
                "epoch": epoch,
                "step": step,
                "loss": total_loss / seen,
                "top1": accuracy,
                "lr": optimizer.param_groups[0]["lr"],
                "images_per_second": round(speed, 1),
                "seconds": round(time.perf_counter() - started, 3),
            }
            print(json.dumps(record), file=log, flush=True)
            console.print(f"epoch {epoch:3d}  loss {record['loss']:.4f}  top-1 {accuracy:.2%}", highlight=False)
    for name in FILES:
        os.replace(last / name, config.output / name)
    last.rmdir()
    console.print(f"{config.output}: top-1 {accuracy:.2%} on {len(val_set)} held-out images")
    return accuracy


def make_model(config: Config, labels: list[str]) -> tuple[RepLKNet, ModelConfig]:
    """The model to train, with what the command line says laid over the checkpoint's own config."""
    in_folder = config.weights is not None and config.weights.is_dir()
    start = load_config(config.weights) if in_folder and config.weights else ModelConfig(config.arch)
    model_config = replace(
        start,
        num_classes=len(labels),
        labels=labels,
        image_size=config.image_size or start.image_size,
        crop_pct=config.crop_pct or start.crop_pct,
        mean=list(config.mean) or start.mean,
        std=list(config.std) or start.std,
    )
    model = create_model(model_config.arch, len(labels), drop_path_rate=config.drop_path)
    if config.weights is not None:
        load_weights(model, config.weights, skip_head=start.labels != labels)
    return model, model_config


def arguments(config: Config) -> str:
    """args.json: the command line and the versions."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
    return json.dumps({**values, "torch": torch.__version__, "timm": timm.__version__}, indent=2) + "\n"


def parse_arguments(command_line: list[str] | None = None) -> Config:
    """The preset's values, overridden by the command line."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="folder")
    preset = first.parse_known_args(command_line)[0].preset
    return tyro.cli(Config, args=command_line, default=PRESETS.get(preset, PRESETS["folder"]), description=__doc__)


def main() -> int:
    config = parse_arguments()
    try:
        train(config)
    except KeyboardInterrupt:
        print(f"\nfinetune: interrupted; the last whole epoch is in {config.output / 'last'}", file=sys.stderr)
        return 130
    except (ValueError, OSError, RuntimeError) as error:
        print(f"finetune: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
