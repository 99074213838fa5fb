"""A trained classifier and its labels: of a checkpoint, or of a weights file that others publish."""

from pathlib import Path

from torch import nn

from models import ModelConfig, classifier_config, create_model, load_weights
from training.data import open_images
from training.settings import SettingsError


def load_classifier(
    checkpoint: Path, arch: str = "", data: Path | None = None
) -> tuple[nn.Module, ModelConfig, list[str]]:
    """The model in evaluation mode, its config and the label of each class.

    A published file, beside which no config.json of ours lies, needs its `arch`. It has no labels: they are the numbers
    of the classes or, if `data` has as many labels by other names, those in their order (for ImageNet's folders,
    n01440764 and so on, that is the published one). Raises `SettingsError` where those do not fit, and as
    `models.classifier_config`.
    """
    config = classifier_config(checkpoint, arch)
    model = create_model(config.arch, config.num_classes, config.image_size)
    load_weights(model, checkpoint, arch=config.arch)
    return model.eval(), config, config.labels or _labels(checkpoint, config.num_classes, data)


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
