"""The input of a build: the options of build_models.py, and the network, config and labels that they name."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from models import ModelConfig, classifier_config, create_model, load_checkpoint
from models.errors import SettingsError
from models.files import read_labels

FORMATS = ("torchscript", "onnx")
LAST_VERSION = 10**18  # tritonserver reads a number of 64 bits, and exits if it cannot


@dataclass(frozen=True)
class BuildOptions:
    """The options of build_models.py; None means the checkpoint's value, or the default."""

    arch: str | None = None
    weights: Path | None = None
    random_weights: bool = False
    labels: Path | None = None
    output: Path = Path("model_repository")
    image_size: int | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    precision: str = "fp32"
    formats: tuple[str, ...] = ("torchscript",)
    version: int | None = None
    threads: int = 0
    parity_images: Path | None = None
    class_map: bool = False


def check_options(options: BuildOptions) -> None:
    """Check the options before any work. Raises `SettingsError` for one that cannot be used, `FileNotFoundError` for a
    missing file, `RuntimeError` for a missing package.
    """
    unknown = [name for name in options.formats if name not in FORMATS]
    if unknown or not options.formats:
        raise SettingsError(f"--format {','.join(options.formats) or '(empty)'}: choose from {', '.join(FORMATS)}")
    if options.weights is None and not options.random_weights:
        raise SettingsError("give --weights, or --random-weights, which is only for measuring speed")
    if options.weights is not None and options.random_weights:
        raise SettingsError(f"--weights {options.weights} or --random-weights, not both")
    for option, path in (("--weights", options.weights), ("--labels", options.labels)):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"{option} {path} does not exist")
    if options.labels is not None and options.labels.is_dir():
        raise SettingsError(f"--labels {options.labels} is a folder: name a text file with one label a line")
    if options.random_weights and options.arch is None:
        raise SettingsError("--random-weights needs --arch: random weights do not name an architecture")
    if options.version is not None and not 1 <= options.version <= LAST_VERSION:
        raise SettingsError(f"--version {options.version}: versions are 1, 2, 3, ..., {LAST_VERSION}")
    if options.threads < 0:
        raise SettingsError(f"--threads {options.threads}: at least 1, or 0 for all cores")
    if options.image_size is not None and options.image_size < 32:
        raise SettingsError(
            f"--image-size {options.image_size}: the model halves its input five times, 32 is the least"
        )
    if options.crop_pct is not None and not 0.1 <= options.crop_pct <= 1:
        raise SettingsError(f"--crop-pct {options.crop_pct}: it must be 0.1 to 1")
    if "onnx" in options.formats and options.precision == "bf16":
        raise SettingsError("ONNX in bf16: ONNX Runtime has no bf16 convolution on CPU; use --precision fp32 or fp16")
    needed = ("onnx", "onnxscript", "onnxruntime") if "onnx" in options.formats else ()
    if missing := [name for name in needed if find_spec(name) is None]:
        raise RuntimeError(f"--format onnx needs {', '.join(missing)}: pip install '.[build]' brings all of it")


def load_model(options: BuildOptions) -> tuple[nn.Module, ModelConfig]:
    """Return the model in training form and eval mode, and its config: from a folder, a weights file, or random."""
    if options.weights is not None:
        config = classifier_config(options.weights, options.arch or "")
    else:  # as many classes as labels
        config = ModelConfig(options.arch or "", len(read_labels(options.labels)) if options.labels else 1000)
    for name in ("image_size", "crop_pct", "crop_mode"):
        if (value := getattr(options, name)) is not None:
            config = replace(config, **{name: value})
    if options.weights is not None:
        return load_checkpoint(options.weights, config)
    return create_model(config.arch, config.num_classes, config.image_size).eval(), config


def labels_of(options: BuildOptions, config: ModelConfig) -> list[str]:
    """One label a class: the file's, else the checkpoint's, else the class numbers."""
    if options.labels is not None:
        return read_labels(options.labels)
    return list(config.labels) if config.labels else [str(index) for index in range(config.num_classes)]
