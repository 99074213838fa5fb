"""Images a second that one process reads, decodes and augments for training, against timm's data set and transforms.

    python -m benchmarks.training_images [--rounds 10]

JPEG files of a folder in, normalised float32 [3,224,224] out, by two recipes: RepLKNet's published fine-tuning (crops
from 8 % of the area on, RandAugment, erasing; without its mstd0.5, by which timm asks Pillow for 0 bits, an error) and
plain crops from 25 % on; and the evaluation's, whose pixels must be equal: within 1 grey level on average. The others'
draws are random: each timed call prepares 8 images. One thread.
"""

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.commands import add_rounds, command_parser
from benchmarks.harness import other_work_warning, publish, versions
from benchmarks.photographs import SIZES, enlarged
from benchmarks.timing import interleaved

OURS, FULL, TIMM = "Widefield", "Widefield, decoded in full", "timm"
RECIPES: dict[str, dict[str, Any]] = {
    "published": {"min_crop_area": 0.08, "rand_augment": "rand-m9-inc1", "random_erasing": 0.25},
    "crops": {"min_crop_area": 0.25},
    "evaluation": {},
}
IMAGE_SIZE, IMAGES = 224, 8
EQUAL = 1.0  # grey levels, on average: what is decoded at a fraction of its size differs slightly


def transforms(recipe: str) -> dict[str, Any]:
    """Return our transform and timm's with the same settings."""
    from timm.data import create_transform

    from models.config import ModelConfig
    from training.augment import AugmentConfig, eval_transform, train_transform

    config = ModelConfig(arch="replknet_31b", num_classes=2, image_size=IMAGE_SIZE)
    common: dict[str, Any] = {"input_size": IMAGE_SIZE, "interpolation": config.interpolation}
    common |= {"mean": config.mean, "std": config.std}
    if recipe == "evaluation":
        return {OURS: eval_transform(config), TIMM: create_transform(**common, crop_pct=config.crop_pct)}
    values = RECIPES[recipe]
    common["color_jitter"] = None
    theirs = create_transform(
        **common,
        is_training=True,
        scale=(values["min_crop_area"], 1.0),
        auto_augment=values.get("rand_augment"),
        re_prob=values.get("random_erasing", 0.0),
        re_mode="pixel",
    )
    return {OURS: train_transform(config, AugmentConfig(**values)), TIMM: theirs}


def datasets(folder: Path, made: dict[str, Any]) -> dict[str, Any]:
    """Return the candidates: data sets of (image, class index)."""
    from timm.data import ImageDataset

    from training.data import image_folder
    from training.images import Transform

    return {
        OURS: image_folder(folder, made[OURS]),
        FULL: image_folder(folder, Transform(made[OURS].transforms)),
        TIMM: ImageDataset(str(folder), transform=made[TIMM]),
    }


def check(candidates: dict[str, Any], recipe: str) -> None:
    """Raise `SystemExit` for an image of another shape or type; in the evaluation also for other pixels or classes."""
    import torch

    from models.config import ModelConfig

    grey_levels = 255 * torch.tensor(ModelConfig("replknet_31b").std).view(3, 1, 1)
    for index in range(len(candidates[TIMM])):
        right, target = candidates[TIMM][index]
        for name, dataset in candidates.items():
            image, label = dataset[index]
            said = f"{name}, {recipe}, image {index}"
            if image.shape != (3, IMAGE_SIZE, IMAGE_SIZE) or image.dtype != torch.float32 or not image.isfinite().all():
                raise SystemExit(f"{said}: {list(image.shape)} of {image.dtype}, or not finite: no speed reported")
            apart = float(((image - right) * grey_levels).abs().mean())
            if recipe == "evaluation" and not (apart <= EQUAL and label == target):
                raise SystemExit(f"{said}: class {label} for {target}, {apart:.2f} grey levels away: no speed reported")


def prepare(dataset: Any) -> None:
    for index in range(IMAGES):
        dataset[index % len(dataset)]


def folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (size, a folder of LABEL/FILE) with scikit-learn's two photographs at that size."""
    for number, (name, size) in enumerate((SIZES | {"JPEG of 500x375": (500, 375)}).items()):
        for label, file in enumerate(enlarged(*size)):
            (root / f"{number}/{label}").mkdir(parents=True)
            (root / f"{number}/{label}/0.jpg").write_bytes(file)
        yield name, root / str(number)


def decoded_size(folder: Path, transform: Any) -> list[int]:
    """The size to which an image is decoded for `transform`."""
    from training.images import load_image

    return list(load_image(str(next(folder.glob("*/*"))), short_side=transform.short_side).size)


def main() -> None:
    import torch

    parser = command_parser(__doc__, __spec__)
    add_rounds(parser, 10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warning = other_work_warning()
    rows = []
    with tempfile.TemporaryDirectory() as root:
        for name, folder in folders(Path(root)):
            for recipe in RECIPES:
                made = transforms(recipe)
                candidates = datasets(folder, made)
                check(candidates, recipe)
                calls = {name: functools.partial(prepare, dataset) for name, dataset in candidates.items()}
                timings = interleaved(calls, options.rounds)
                speeds = {key: round(1e3 * IMAGES / timing.median, 1) for key, timing in timings.items()}
                ratios = {key: round(timings[TIMM].median / timing.median, 3) for key, timing in timings.items()}
                size = decoded_size(folder, made[OURS])
                rows.append({"file": name, "recipe": recipe, "decoded": size, "images_per_s": speeds, "x_timm": ratios})
                said = ", ".join(f"{key} {speeds[key]} ({ratios[key]})" for key in speeds)
                print(f"{name}, {recipe}, decoded to {size}: images/s {said}", flush=True)
    used = versions("torch", "timm", "torchvision", "pillow", "numpy")
    publish("training_images", image_size=IMAGE_SIZE, rounds=options.rounds, versions=used, warning=warning, rows=rows)


if __name__ == "__main__":
    main()
