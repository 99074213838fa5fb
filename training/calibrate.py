"""Divide a checkpoint's logits by one temperature, so that its probabilities are honest (Guo et al., ICML 2017).

It is fitted to labelled images and folded into the head; answers stay. Measure the result on others: these flatter it.

Example:
    python -m training.calibrate --checkpoint runs/mine --data my_images/val --output runs/mine-calibrated
    python -m training.evaluate --checkpoint runs/mine-calibrated --data my_images/test
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from scipy.optimize import brentq
from torch import Tensor

from models import linear_head
from training.accuracy import Calibration, answers, logits_of
from training.classifier import LabelledConfig, open_labelled
from training.distributed import check_device
from training.evaluate import arguments, save_corrected
from training.layout import place
from training.loaders import make_loader
from training.logs import shown_progress, standard_output
from training.outputs import check_folder, check_no_checkpoint
from training.script import exit_code, parse
from training.settings import check_ranges

LEAST, MOST = -14.0, 14.0  # log of 1 / temperature


@dataclass(frozen=True)
class Config(LabelledConfig):
    """Calibrate a checkpoint on images that it was not trained on."""

    output: Path
    """New folder for the calibrated checkpoint"""


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature of the lowest negative log-likelihood of logits [N,classes], in which 1 / it is convex.

    Raises `ValueError` if there is none: all answers are right, or the labels' logits are no higher than the others.
    """
    logits = logits.double()
    gaps = logits - logits.gather(1, targets[:, None])  # [N,classes], 0 for the label

    def slope(log_scale: float) -> float:
        """The derivative by the scale, 1 / temperature: it grows with it."""
        return float(((gaps * math.exp(log_scale)).softmax(1) * gaps).sum(1).mean())

    if slope(MOST) <= 0:
        right = int((gaps.amax(1) <= 0).sum())
        raise ValueError(
            f"{right} of {len(targets)} answers are right, and the likelihood grows without end as the temperature "
            "falls to 0: take images of which the model gets some wrong"
        )
    if slope(LEAST) >= 0:
        raise ValueError(
            "the labels' logits are on average no higher than those of the other classes, so no temperature helps: "
            "check the labels, or train further"
        )
    return math.exp(-brentq(slope, LEAST, MOST, xtol=1e-12))


def calibrate(config: Config, console: Console | None = None) -> tuple[float, Calibration, Calibration]:
    """Fold the fitted temperature into the checkpoint; return it, and the calibration before and after it.

    `console` shows the progress, and these before a file is written. Raises as `evaluate`, and `ValueError` as
    `linear_head`.
    """
    console = console or Console(quiet=True)
    check_ranges(config)
    check_device(config.device)
    check_no_checkpoint("--output", config.output)
    check_folder("--output", config.output)
    model, model_config, dataset = open_labelled(config)
    made, head = arguments(config.checkpoint), linear_head(model)
    place(model, config.device)
    loader = make_loader(dataset, config.batch_size, train=False, workers=config.workers)
    found = logits_of(model, shown_progress(loader, "evaluating", console), config.device)
    logits, targets = (torch.cat(parts) for parts in zip(*found, strict=True))
    answers(logits)  # refuses NaN
    temperature = fit_temperature(logits, targets)
    before, after = Calibration(), Calibration()
    before.add(logits, targets)
    after.add(logits / temperature, targets)
    console.print(f"temperature {temperature:.4f}, fitted to {before.images} images; on these")
    console.print(f"negative log-likelihood {before.nll:.4f} -> {after.nll:.4f}")
    console.print(f"expected calibration error {before.error:.2%} -> {after.error:.2%}")
    with torch.no_grad():
        head.weight.div_(temperature)
        head.bias.div_(temperature)
    done = {"temperature": temperature * made.get("temperature", 1.0)}
    save_corrected(config.output, model, model_config, config.checkpoint, made, done)
    return temperature, before, after


def report(config: Config) -> None:
    console = standard_output()
    calibrate(config, console)
    console.print(f"written: {config.output}; measure it with training.evaluate on other images", highlight=False)


def main() -> int:
    config = parse(Config, "training.calibrate", __doc__)
    return exit_code("calibrate", lambda: report(config))


if __name__ == "__main__":
    sys.exit(main())
