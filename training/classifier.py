"""A trained classifier and its labels: of a checkpoint, or of a weights file that others publish."""

from pathlib import Path

from torch import nn

from models import ModelConfig, checkpoint_config, count_classes, create_model, load_config, load_weights
from training.data import open_images
from training.settings import SettingsError


def load_classifier(
    checkpoint: Path, arch: str = "", data: Path | None = None
) -> tuple[nn.Module, ModelConfig, list[str]]:
    """The model in evaluation mode, its config and the label of each class.

    A published file, beside which no config.json of ours lies, needs its `arch`. It has no labels: they are the numbers
    of the classes or, if `data` has as many labels by other names, those in their order (for ImageNet's folders,
    n01440764 and so on, that is the published one). Raises `SettingsError` for an encoder, and where `arch` or labels
    cannot be, `WeightsError`, `FileNotFoundError`.
    """
    config = checkpoint_config(checkpoint, arch)
    if config is None:
        config = _published(checkpoint, arch)
    if config.num_classes == 1:
        raise SettingsError(
            f"{checkpoint} is a pre-trained encoder, which answers nothing: fine-tune it (training.finetune) first"
        )
    model = create_model(config.arch, config.num_classes, config.image_size)
    load_weights(model, checkpoint)
    return model.eval(), config, config.labels or _labels(checkpoint, config.num_classes, data)


def _published(file: Path, arch: str) -> ModelConfig:
    if not file.is_file():
        return load_config(file)  # which says what is not there
    if not arch:
        raise SettingsError(f"--arch is needed: no config.json lies beside {file} that training has written")
    return ModelConfig(arch, count_classes(arch, file) or 1000)


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
