"""Pre-train an encoder without labels, by masked image modelling (SimMIM; token or sparse masks).

python -m training.pretrain --preset photos --output runs/pretrain-photos
torchrun --nproc-per-node 8 -m training.pretrain --preset simmim --data imagenet --arch replknet_31b
python -m training.finetune --data my_images --weights runs/pretrain-photos
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from models import (
    ARCHITECTURES,
    MaskedPretrainer,
    ModelConfig,
    create_model,
    load_config,
    load_weights,
    save_checkpoint,
)
from training import distributed
from training.data import make_loader, write_digits
from training.loop import Learner, Terminated, fit
from training.masking import MaskedImages, MaskGenerator, Unlabelled, held_out, pretrain_transform, write_photos
from training.pictures import write_reconstructions
from training.settings import LoopConfig, SettingsError, as_json, one_line

STRIDE = 32


@dataclass(frozen=True)
class Config(LoopConfig):
    """Pre-train a RepLKNet on images without labels."""

    preset: Literal["simmim", "photos", "digits"] = "simmim"
    """Where the defaults come from; photos and digits need no data of yours and no GPU."""
    output: Path = Path("runs/pretrain")
    """Folder of the checkpoint, which training.finetune --weights takes; the run in progress is in its last/."""
    data: Path = Path("data/images")
    """Folder with train/ and val/, images at any depth or shards (*.tar); labels are not looked at."""
    arch: str = "replknet_small"
    """Name in models.ARCHITECTURES; a checkpoint folder in --weights brings its own."""
    weights: Path | None = None
    """Checkpoint folder, .safetensors or .pth whose encoder is trained on."""
    image_size: int = 192
    """Pixels, a multiple of 32."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    """Of the normalisation, on the 0..1 scale; empty: the architecture's."""
    mask_patch: int = 32
    """Side of a masked square, pixels: a multiple of 4 that divides 32 or is a multiple of it."""
    mask_ratio: float = 0.6
    """Share of the patches that is masked, rounded up to whole patches."""
    mask_mode: Literal["token", "sparse"] = "token"
    """token: SimMIM's learned vector; sparse: what is masked stays out of every layer and batch norm (SparK)."""
    loss: Literal["l1", "smooth_l1", "l2"] = "l1"
    target_norm: Literal["none", "window", "patch"] = "none"
    """The image as it is; by the mean and deviation of a window around each pixel (SimMIM), of each patch (MAE)."""
    window: int = 47
    """Side of that window, pixels, odd."""
    min_crop_area: float = 0.67
    """Of the random crop, as a share of the image's area."""
    flip: bool = True
    """Mirror images."""
    drop_path: float = 0.0
    pictures: int = 8
    """Held-out images shown in output/reconstructions.png after every epoch; 0: none."""


# SimMIM's recipe of 100 epochs at 192 px (Xie et al., CVPR 2022): the rates are its 2e-4 and 1e-5 for 512 images.
_SIMMIM = Config(
    output=Path("runs/pretrain-simmim"),
    data=Path("data/imagenet"),
    arch="replknet_31b",
    epochs=100,
    batch_size=128,
    global_batch_size=2048,
    lr=8e-4,
    min_lr=4e-5,
    warmup_epochs=10.0,
    weight_decay=0.05,
    clip_grad=5.0,
    ema_decay=0.0,
    amp="bf16",
    workers=10,
)
PRESETS = {
    "simmim": _SIMMIM,
    # Tiles of real photographs that come with scikit-learn; a minute or two on two CPU cores.
    "photos": Config(
        preset="photos",
        output=Path("runs/pretrain-photos"),
        data=Path("data/photos"),
        arch="replknet_nano",
        image_size=96,
        mask_patch=16,
        epochs=60,
        batch_size=32,
        lr=2e-3,
        warmup_epochs=3.0,
        clip_grad=5.0,
        ema_decay=0.0,
    ),
    "digits": Config(
        preset="digits",
        output=Path("runs/pretrain-digits"),
        data=Path("data/digits"),
        arch="replknet_nano",
        image_size=32,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        mask_patch=8,
        flip=False,  # a mirrored digit is no digit
        epochs=40,
        batch_size=64,
        lr=2e-3,
        clip_grad=5.0,
        ema_decay=0.0,
        threads=1,
    ),
}


class Pretraining(Learner):
    """The loss of a masked batch; what is saved of the model is its encoder."""

    model: MaskedPretrainer

    def __init__(self, model: MaskedPretrainer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        return self.model(images, masks)


def train(config: Config, console: Console | None = None) -> float:
    """Train and write the encoder's checkpoint; returns the last epoch's loss on val/.

    Raises `ValueError` (`DataError`, `SettingsError`, `WeightsError`) for input that cannot be trained on,
    `RuntimeError` if the loss diverges, `StateError` (an `OSError`) if the run cannot be saved, `Terminated` on SIGTERM.
    """
    check(config)
    config = replace(config, device=distributed.setup(config.device))
    main = distributed.rank() == 0
    console = console or Console()
    console = console if main else Console(quiet=True)
    if config.data == PRESETS[config.preset].data and config.preset in ("photos", "digits"):
        {"photos": write_photos, "digits": write_digits}[config.preset](config.data)
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)

    model, model_config = make_model(config)
    masks = MaskGenerator(config.image_size, config.mask_patch, config.mask_ratio)
    vary = pretrain_transform(model_config, config.min_crop_area, config.flip)
    train_set = MaskedImages(Unlabelled(config.data / "train"), vary, masks)
    val_set = held_out(config.data / "val", model_config, masks, config.seed)
    loading: dict[str, Any] = {"workers": config.workers, "seed": config.seed}
    loading["pin_memory"] = config.device.startswith("cuda")
    train_loader = make_loader(train_set, config.batch_size, train=True, **loading)
    val_loader = make_loader(val_set, config.batch_size, train=False, **loading)
    if config.sync_bn and distributed.world_size() > 1:
        distributed.convert_sync_batchnorm(model, config.device)
    learner = Pretraining(model).to(config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def evaluate(finished: nn.Module, epoch: int) -> dict[str, float]:
        assert isinstance(finished, MaskedPretrainer)
        value = evaluation_loss(finished, val_loader, config.device)
        if main and config.pictures:
            shown = [val_set[index] for index in range(min(config.pictures, len(val_set)))]
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
        as_json(config),
        evaluate=evaluate,
        save=lambda folder, finished: save_checkpoint(folder, finished.encoder, model_config),  # type: ignore[arg-type]
        console=console,
    )
    console.print(f"{config.output}: loss {metrics['val_loss']:.4f} on {len(val_set)} held-out images")
    return metrics["val_loss"]


def check(config: Config) -> None:
    """Raises `SettingsError` for settings that do not fit together; MaskGenerator and the operator check the rest."""
    if config.image_size < STRIDE or config.image_size % STRIDE:
        raise SettingsError(f"--image-size {config.image_size}: a multiple of {STRIDE} is needed")
    patch = config.mask_patch
    if patch < 4 or patch % 4 or (patch % STRIDE and STRIDE % patch):
        raise SettingsError(f"--mask-patch {patch}: 4, 8, 16, 32 or a multiple of {STRIDE} is needed")
    if config.window < 3 or config.window % 2 == 0:
        raise SettingsError(f"--window {config.window}: an odd number, at least 3, is needed")
    if config.layer_decay != 1.0:
        raise SettingsError(f"--layer-decay {config.layer_decay}: pre-training has one rate for all layers; use 1")
    if config.sync_bn and config.mask_mode == "sparse":
        raise SettingsError("--sync-bn with --mask-mode sparse: its batch norms count visible positions; leave it out")


def make_model(config: Config) -> tuple[MaskedPretrainer, ModelConfig]:
    """The model to train and what its checkpoint will say: no labels, so fine-tuning makes a head of its own."""
    in_folder = config.weights is not None and config.weights.is_dir()
    if not in_folder and config.arch not in ARCHITECTURES:
        raise SettingsError(f"--arch {config.arch}: choose one of {', '.join(ARCHITECTURES)}")
    start = load_config(config.weights) if in_folder and config.weights else ModelConfig(config.arch)
    model_config = replace(
        start,
        num_classes=1,
        labels=None,
        image_size=config.image_size,
        mean=list(config.mean) or start.mean,
        std=list(config.std) or start.std,
    )
    encoder = create_model(model_config.arch, 1, drop_path_rate=config.drop_path)
    if config.weights is not None:
        load_weights(encoder, config.weights, skip_head=True)
    return MaskedPretrainer(encoder, config.mask_mode, config.loss, config.target_norm, config.window), model_config


@torch.no_grad()
def evaluation_loss(model: MaskedPretrainer, loader: DataLoader[Any], device: str) -> float:
    """Mean over the images of all processes, running statistics, the images' fixed masks."""
    training = model.training
    model.eval()
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for images, masks in loader:
        images = images.to(device, memory_format=torch.channels_last)
        value = model(images, masks.to(device))
        total += torch.stack([value.double() * len(images), value.new_tensor(len(images), dtype=torch.float64)])
    model.train(training)
    loss_sum, count = distributed.all_sum(total).tolist()
    return loss_sum / count


def parse_arguments(command_line: list[str] | None = None) -> Config:
    """The preset's values, overridden by the command line."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", default="simmim")
    preset = first.parse_known_args(command_line)[0].preset
    return tyro.cli(Config, args=command_line, default=PRESETS.get(preset, PRESETS["simmim"]), description=__doc__)


def main() -> int:
    config = parse_arguments()
    try:
        train(config)
    except KeyboardInterrupt:
        last: Path = config.output / "last"
        print(f"\npretrain: interrupted; {last} has the last saved state: run it again to resume", file=sys.stderr)
        return 130
    except Terminated as reason:
        print(f"pretrain: {reason}", file=sys.stderr)
        return 143
    except (ValueError, OSError, RuntimeError) as error:
        print(f"pretrain: {one_line(error)}", file=sys.stderr)
        return 1
    finally:
        distributed.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
