"""Defaults of `training.finetune` by name: the published recipes, and ours for small machines."""

from dataclasses import replace
from pathlib import Path

from training.finetune_config import Config

# RepLKNet-31B on ImageNet-1K (Ding et al., CVPR 2022, and the authors' scripts): 300 epochs from random weights.
_REPLKNET_31B = Config(
    preset="replknet_31b",
    output=Path("runs/replknet-31b"),
    data=Path("data/imagenet"),
    arch="replknet_31b",
    epochs=300,
    batch_size=64,
    global_batch_size=2048,
    lr=4e-3,
    min_lr=1e-6,
    warmup_epochs=10.0,
    drop_path=0.5,
    ema_decay=0.9999,
    ema_warmup=False,
    amp="bf16",
    sync_bn=True,
    min_crop_area=0.08,
    rand_augment="rand-m9-mstd0.5-inc1",
    random_erasing=0.25,
    mixup=0.8,
    cutmix=1.0,
    workers=10,
)

PRESETS = {
    "folder": Config(),
    "replknet_31b": _REPLKNET_31B,
    # The same authors' fine-tuning of those weights, head included, at 384 px; name them with --weights.
    "replknet_31b_384": replace(
        _REPLKNET_31B,
        preset="replknet_31b_384",
        output=Path("runs/replknet-31b-384"),
        image_size=384,
        crop_pct=1.0,
        crop_mode="squash",
        keep_head=True,
        epochs=30,
        batch_size=16,
        global_batch_size=1024,
        lr=4e-4,
        warmup_epochs=1.0,
        weight_decay=1e-8,
        layer_decay=0.7,
        drop_path=0.8,
        mixup=0.0,
        cutmix=0.0,
    ),
    # A machine without a GPU: a few classes of photographs, a small model at a small size.
    "cpu": Config(
        preset="cpu",
        output=Path("runs/cpu"),
        arch="replknet_nano",
        image_size=96,
        batch_size=32,
        lr=2e-3,
        drop_path=0.05,
        ema_decay=0.99,
        rand_augment="n2-m9",
        device="cpu",
    ),
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
        affine_fill="black",  # as behind the digits
        epochs=20,
        lr=4e-3,
        drop_path=0.05,
        ema_decay=0.99,
        workers=1,
        threads=1,  # on maps this small a second thread gains little and, on a busy machine, loses much
    ),
}
