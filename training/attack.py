"""Measure the accuracy of a checkpoint on clean images and under adversarial attacks.

Example:
    python -m training.attack --checkpoint runs/digits-nano --data data/digits/val --epsilon 8 --attacks fgsm pgd apgd
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table
from torch import Tensor
from torch.utils.data import Subset

from models.files import write_file
from training.accuracy import answers
from training.attacks import Attack, PixelModel, apgd_ce, fgsm, pgd
from training.classifier import LabelledConfig, open_labelled
from training.distributed import check_device
from training.layout import place
from training.loaders import make_loader
from training.logs import standard_output
from training.outputs import check_file
from training.randomness import seed_everything
from training.samplers import evenly
from training.script import exit_code, parse
from training.settings import SettingsError, check_ranges, check_used


@dataclass(frozen=True)
class Config(LabelledConfig):
    """Attack a checkpoint in the L-infinity ball around its images."""

    attacks: tuple[Literal["fgsm", "pgd", "apgd", "autoattack"], ...] = ("fgsm", "pgd", "apgd")
    """Attacks to run; autoattack is the standard suite and needs a package of that name"""
    epsilon: float = 8.0
    """Largest change of a pixel (L-infinity), in 255ths of its range, 0 to 255"""
    steps: int = 20
    """Steps of pgd; apgd takes 5 times as many"""
    step: float = 0.0
    """Step size of pgd, in 255ths; 0: 2.5 x --epsilon / --steps"""
    restarts: int = 1
    """Random starts of pgd and apgd; the strongest attack on each image counts"""
    count: int | None = None
    """Number of images to attack, spread evenly over the classes; None: all"""
    json: Path | None = None
    """Write the accuracies and settings to this JSON file"""
    seed: int = 0
    """Seed of the attacks' random starts"""


ITERATED = ("attacks", ("pgd", "apgd"))
USED_BY = {"steps": ITERATED, "step": ("attacks", ("pgd",)), "restarts": ITERATED}  # see `check_used`


@dataclass(frozen=True)
class Result:
    """The accuracy under an attack, 0..1: `right` of `images`; `settings` have epsilon and step on the 0..1 scale."""

    attack: str
    accuracy: float
    right: int
    images: int
    settings: dict[str, Any]


def make_attack(name: str, config: Config) -> tuple[Attack, dict[str, Any]]:
    """Return the attack and its settings. Raises `SettingsError` if its package is not installed."""
    epsilon = config.epsilon / 255
    if name == "autoattack":
        return auto_attack(config, epsilon), {"epsilon": epsilon, "version": "standard", "seed": config.seed}
    step = config.step / 255 or 2.5 * epsilon / config.steps
    attacks: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
        "fgsm": (fgsm, {}),
        "pgd": (pgd, {"steps": config.steps, "step": step, "restarts": config.restarts}),
        "apgd": (apgd_ce, {"steps": 5 * config.steps, "restarts": config.restarts}),
    }
    function, own = attacks[name]
    settings = {"epsilon": epsilon, **own}
    return partial(function, **settings), settings


def auto_attack(config: Config, epsilon: float) -> Attack:
    """AutoAttack's standard suite (APGD-CE, targeted APGD-DLR, FAB-T, Square). Raises `SettingsError` without it."""
    try:
        from autoattack import AutoAttack
    except ImportError as error:
        raise SettingsError(
            f"--attacks autoattack needs its package ({error}): "
            "pip install git+https://github.com/fra31/auto-attack, or use apgd"
        ) from error

    def attack(model: torch.nn.Module, pixels: Tensor, targets: Tensor) -> Tensor:
        suite = AutoAttack(model, norm="Linf", eps=epsilon, version="standard", device=pixels.device, seed=config.seed)
        return suite.run_standard_evaluation(pixels, targets, bs=len(pixels))

    return attack


def attack_checkpoint(config: Config, progress: Callable[[str], None] = lambda _: None) -> list[Result]:
    """Measure the clean accuracy, then that under each attack, for which an image must be right clean and attacked.

    Raises `DataError`, `SettingsError`, `WeightsError`, `FileNotFoundError`.
    """
    check_ranges(config)
    if len(set(config.attacks)) < len(config.attacks):
        raise SettingsError(f"--attacks {' '.join(config.attacks)}: name each attack once")
    check_used(config, Config, USED_BY)
    check_device(config.device)
    plan = [(name, *make_attack(name, config)) for name in config.attacks]
    if config.json is not None:
        check_file("--json", config.json)
    network, model_config, dataset = open_labelled(config)
    chosen = Subset(dataset, evenly(len(dataset), config.count or len(dataset)))
    loader = make_loader(chosen, config.batch_size, train=False, workers=config.workers)
    model = PixelModel(network, model_config.mean, model_config.std).eval().requires_grad_(False)
    place(model, config.device)
    right = dict.fromkeys(["clean", *config.attacks], 0)
    seen = 0
    seed_everything(config.seed)
    for images, targets in loader:
        images, targets = images.to(config.device), targets.to(config.device)
        pixels = model.pixels(images)
        clean = _right(model, pixels, targets)
        right["clean"] += int(clean.sum())
        for name, attack, _ in plan:
            progress(f"{name} after {seen} of {len(chosen)} images")
            right[name] += int((clean & _right(model, attack(model, pixels, targets), targets)).sum())
        seen += len(images)
    settings: dict[str, dict[str, Any]] = {"clean": {}} | {name: values for name, _, values in plan}
    return [Result(name, count / seen, count, seen, settings[name]) for name, count in right.items()]


@torch.no_grad()
def _right(model: PixelModel, pixels: Tensor, targets: Tensor) -> Tensor:
    return answers(model(pixels)) == targets


def result_table(results: list[Result]) -> Table:
    table = Table("attack", "accuracy", "right", "settings")
    for result in results:
        shown = ", ".join(f"{name} {_in_255ths(name, value)}" for name, value in result.settings.items())
        table.add_row(result.attack, f"{result.accuracy:.2%}", f"{result.right} of {result.images}", shown)
    return table


def _in_255ths(name: str, value: Any) -> str:
    return f"{255 * value:g}/255" if name in ("epsilon", "step") else str(value)


def report(config: Config) -> None:
    console = standard_output()
    with console.status("attacking") as status:
        results = attack_checkpoint(config, status.update if console.is_terminal else console.print)
    console.print(result_table(results))
    if config.json is not None:
        values = {"checkpoint": str(config.checkpoint), "data": str(config.data), **config.inputs, "seed": config.seed}
        text = json.dumps({**values, "results": [asdict(r) for r in results]}, indent=2) + "\n"
        write_file(config.json, lambda path: path.write_text(text))


def main() -> int:
    config = parse(Config, "training.attack", __doc__)
    return exit_code("attack", lambda: report(config))


if __name__ == "__main__":
    sys.exit(main())
