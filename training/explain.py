"""Draw which parts of each image a checkpoint's answer rests on, and score how faithful these maps are.

Example:
    python -m training.explain --checkpoint runs/digits-nano --data data/digits/val --method layercam --layer stages.0
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from training.accuracy import answers
from training.augment import eval_transform, to_picture
from training.cam import AT_ONCE, Method, explain
from training.cam_scores import deletion, insertion, randomization_check
from training.classifier import InputConfig, load_classifier
from training.data import Unlabelled
from training.distributed import check_device
from training.images import DataError, Transform, read_image
from training.layout import place
from training.lists import is_list, write_csv
from training.logs import standard_output
from training.outputs import check_folder, check_outside
from training.road import road
from training.samplers import evenly
from training.script import exit_code, parse
from training.settings import SettingsError, check_ranges, first_of

LONGEST_STEM = 200  # bytes: a file's name, with its prefix and suffix, may have 255
TABLE_FILE = "explained.csv"  # columns label and probability: of the explained class
BETTER = {"insertion": " (higher is better)", "deletion": " (lower is better)", "ROAD": " (higher is better)"}
COLOURS = ((0, 0, 128), (255, 80, 0), (255, 255, 160))  # cold, warm, hot: those of the client's overlays


@dataclass(frozen=True)
class Config(InputConfig):
    """Explain the answers of a checkpoint."""

    checkpoint: Path
    """A checkpoint folder, the file in it, or a published file with its --arch.
    The same as --weights of build_models.py and training.finetune."""
    data: Path
    """An image, a folder of images at any depth or of *.tar shards, or the val.csv of a run"""
    output: Path = Path("runs/explained")
    """Folder for the images with their maps and explained.csv"""
    method: Method = "cam"
    """Method that makes the maps; cam is exact but only for the last layer, the others take gradients at any --layer"""
    layer: str = ""
    """Layer of the gradient methods, such as norm or stages.2; empty: the last one"""
    target: str = ""
    """Label to explain in every image; empty: the model's answer"""
    count: int = 16
    """Number of images to explain, spread evenly over the folder"""
    scores: bool = False
    """Also compute insertion, deletion, ROAD and the randomisation check"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """PyTorch device: cpu, cuda or cuda:N; by default a GPU if PyTorch sees one"""


def overlay(picture: np.ndarray, heat: Tensor) -> Image.Image:
    """uint8 [H,W,3] and a map [H,W] in 0..1 -> the picture beside its blend with the map's colours."""
    stops = np.linspace(0, 1, len(COLOURS))
    values = heat.cpu().numpy()
    colour = np.stack([np.interp(values, stops, channel) for channel in zip(*COLOURS, strict=True)], -1)
    blend = ((picture + colour) / 2).round().astype(np.uint8)
    return Image.fromarray(np.concatenate([picture, blend], 1))


def find_images(path: Path, count: int, transform: Transform) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and transformed pictures of `count` images, spread evenly over the folder.

    Raises `DataError` for a path that does not exist, and for one without images.
    """
    if not path.exists():
        raise DataError(f"--data {path} does not exist: name an image, a folder of images or *.tar, or a list (.csv)")
    if path.is_file() and not is_list(path):
        return iter([(str(path), transform(read_image(str(path), short_side=transform.short_side)))])
    found = Unlabelled(path)
    places = evenly(len(found), count)
    return ((found.names[place], transform(found.image(place, transform.short_side))) for place in places)


def explain_images(config: Config) -> tuple[Table, dict[str, float]]:
    """Write one overlay for each image, and explained.csv; return its table, and the scores if they are asked for.

    If it is stopped, explained.csv has the overlays that are written.

    Raises `DataError`, `SettingsError`, `WeightsError`, `FileNotFoundError`.
    """
    check_ranges(config)
    check_device(config.device)
    if config.layer and config.method == "cam":
        raise SettingsError(
            f"--layer {config.layer} does nothing with --method cam: take layercam or another, or leave it out"
        )
    check_outside(config.output, config.data)
    check_folder("--output", config.output)
    model, model_config, labels = load_classifier(config.checkpoint, config.arch, **config.inputs)
    place(model, config.device)
    if config.target and config.target not in labels:
        raise SettingsError(f"--target {config.target} is not one of the {len(labels)} labels: {first_of(labels)}")
    found = find_images(config.data, config.count, eval_transform(model_config))
    rows: list[tuple[str, str, str, float, str]] = []
    kept: list[tuple[Tensor, Tensor, Tensor]] = []  # for the scores
    try:
        while part := list(islice(found, AT_ONCE)):
            images = torch.stack([picture for _, picture in part]).to(config.device)  # [B,3,S,S]
            with torch.no_grad():
                logits = model(images)
            probabilities, answered = logits.softmax(1), answers(logits)
            targets = torch.full_like(answered, labels.index(config.target)) if config.target else answered
            maps = explain(model, images, targets, config.method, config.layer)  # [B,S,S]
            config.output.mkdir(parents=True, exist_ok=True)
            for index, (source, _) in enumerate(part):
                target = int(targets[index])
                stem = shortened(Path(source.rpartition(":")[2]).stem)  # of a member, not of its shard
                name = f"{len(rows):03d}_{stem}_{config.method}.png"
                overlay(to_picture(images[index], model_config), maps[index]).save(config.output / name)
                answer = labels[int(answered[index])]
                rows.append((source, labels[target], answer, float(probabilities[index, target]), name))
            if config.scores:
                kept.append((images, maps, targets))
    finally:
        if rows:
            write_csv(config.output / TABLE_FILE, ("image", "label", "answer", "probability", "picture"), rows)
    table = Table("image", "explained", "probability", "answer", "picture")
    for source, label, answer, probability, name in rows:
        table.add_row(Text(source), Text(label), f"{probability:.1%}", Text(answer), Text(name))
    if not config.scores:
        return table, {}
    images, maps, targets = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return table, scores_of(model, images, maps, targets, config)


def shortened(stem: str) -> str:
    content = os.fsencode(stem)
    return stem if len(content) <= LONGEST_STEM else content[:LONGEST_STEM].decode(errors="ignore")


def scores_of(model: nn.Module, images: Tensor, maps: Tensor, targets: Tensor, config: Config) -> dict[str, float]:
    """Insertion, deletion and ROAD, also of random maps, and the rank correlation after each randomised part."""
    noise = torch.rand(maps.shape, generator=torch.Generator().manual_seed(0)).to(maps.device)
    scores = {}
    for name, score in (("insertion", insertion), ("deletion", deletion), ("ROAD", road)):
        for whose, judged in (("", maps), (" of a random map", noise)):
            parts = zip(*(tensor.split(AT_ONCE) for tensor in (images, judged, targets)), strict=True)
            scores[name + whose] = torch.cat([score(model, *part) for part in parts]).mean().item()
    check = randomization_check(model, lambda m: explain(m, images, targets, config.method, config.layer))
    return scores | {f"rank correlation, random down to {part}": value for part, value in check.items()}


def report(config: Config) -> None:
    console = standard_output()
    table, scores = explain_images(config)
    console.print(table)
    for name, value in scores.items():
        console.print(f"{name}: {value:.3f}{BETTER.get(name, '')}")
    console.print(f"overlays and {TABLE_FILE} are in {config.output}")


def main() -> int:
    config = parse(Config, "training.explain", __doc__)
    return exit_code("explain", lambda: report(config))


if __name__ == "__main__":
    sys.exit(main())
