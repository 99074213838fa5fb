"""Load a trained classifier and its labels from a checkpoint, or from a weights file that others publish."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from models import ModelConfig, classifier_config, load_checkpoint
from training.augment import eval_transform
from training.data import open_images
from training.images import Labelled
from training.settings import SettingsError


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """Settings that a published file does not contain, or that replace a checkpoint's."""

    arch: str = ""
    """Architecture of a published file, or another without config.json: replknet_31b, ..., timm/NAME.
    Empty: the one that config.json names."""
    image_size: int = 0
    """Side of the network's input, pixels; 0: that of the checkpoint, else of the architecture.
    The defaults of --crop-pct and --crop-mode come from there too."""
    crop_pct: float = 0.0
    """Share of the resized image's shorter side that the crop keeps, 0.1 to 1; 0: as for --image-size"""
    crop_mode: Literal["center", "squash", "border"] | None = None
    """How images become square; None: as for --image-size.
    center: keep the centre; squash: scale each side on its own; border: keep all and fill with the mean."""

    @property
    def inputs(self) -> dict[str, Any]:
        """The settings of the images' preparation that were given."""
        values = {name: getattr(self, name) for name in ("image_size", "crop_pct", "crop_mode")}
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True, kw_only=True)
class LabelledConfig(InputConfig):
    """Settings of a measurement on labelled images."""

    checkpoint: Path = field(kw_only=False)
    """A checkpoint folder, the file in it, or a published file with its --arch.
    The same as --weights of build_models.py and training.finetune."""
    data: Path = field(kw_only=False)
    """Folder of LABEL/FILE or of *.tar shards, or the val.csv of a run"""
    batch_size: int = 64
    """Images per forward pass"""
    workers: int = 2
    """Processes that decode images; 0: decode in the main process"""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """PyTorch device: cpu, cuda or cuda:N; by default a GPU if PyTorch sees one"""


def open_labelled(config: LabelledConfig) -> tuple[nn.Module, ModelConfig, Labelled]:
    """Return `load_classifier`'s model and config, and the images, whose `classes` are the model's. Raises as those."""
    model, model_config, labels = load_classifier(config.checkpoint, config.arch, config.data, **config.inputs)
    return model, model_config, open_images(config.data, eval_transform(model_config), labels)


def load_classifier(
    checkpoint: Path, arch: str = "", data: Path | None = None, **inputs: Any
) -> tuple[nn.Module, ModelConfig, list[str]]:
    """Load the model in evaluation mode, its config with the values of `inputs` replaced, and the label of each class.

    A published file, which has no config.json of ours beside it, needs its `arch`. It has no labels: they are the
    numbers of the classes or, if `data` has as many labels with other names, those in their order (for ImageNet's
    folders, n01440764 and so on, the published order). Raises `SettingsError` if the labels of `data` do not fit, and
    as `models.classifier_config`.
    """
    model, config = load_checkpoint(checkpoint, replace(classifier_config(checkpoint, arch), **inputs))
    return model, config, config.labels or _labels(checkpoint, config.num_classes, data)


def _labels(checkpoint: Path, num_classes: int, data: Path | None) -> list[str]:
    numbers = [str(index) for index in range(num_classes)]
    found = open_images(data, None).classes if data is not None else numbers
    if set(found) <= set(numbers):
        return numbers
    if len(found) != num_classes:
        raise SettingsError(
            f"{checkpoint} has {num_classes} classes and no labels, {data} has {len(found)} labels: give a folder of "
            "all the classes, or one whose labels are their numbers"
        )
    return found
