"""What is built: the options of build_models.py, and the network, config and labels that they name."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from torch import nn

from kernels import native_library
from models import ModelConfig, check_arch, checkpoint_config, count_classes, create_model, load_weights
from models.timm_models import is_timm
from models.weights import CONFIG_FILE

FORMATS = ("torchscript", "onnx")


@dataclass(frozen=True)
class BuildOptions:
    """What build_models.py was asked for; None means: as the checkpoint says."""

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
    """Raises `ValueError`, `FileNotFoundError` or `RuntimeError` for what cannot be built, before any work."""
    unknown = [name for name in options.formats if name not in FORMATS]
    if unknown or not options.formats:
        raise ValueError(f"--format {','.join(options.formats) or '(empty)'}: choose from {', '.join(FORMATS)}")
    if options.arch is not None:
        check_arch(options.arch)
    if options.weights is None and not options.random_weights:
        raise ValueError("name --weights, or ask for --random-weights (for measuring speed only)")
    if options.weights is not None and options.random_weights:
        raise ValueError(f"--weights {options.weights} or --random-weights, not both")
    for option, path in (("--weights", options.weights), ("--labels", options.labels)):
        if path is not None and not path.exists():
            raise FileNotFoundError(f"{option} {path} does not exist")
    if options.random_weights and options.arch is None:
        raise ValueError("--random-weights needs --arch: random weights say no architecture")
    if options.version is not None and options.version < 1:
        raise ValueError(f"--version {options.version}: versions are 1, 2, 3, ...")
    if options.threads < 0:
        raise ValueError(f"--threads {options.threads}: at least 1, or 0 for all cores")
    if options.image_size is not None and options.image_size < 32:
        raise ValueError(f"--image-size {options.image_size}: the model halves its input five times, 32 is the least")
    if options.crop_pct is not None and not 0.1 <= options.crop_pct <= 1:
        raise ValueError(f"--crop-pct {options.crop_pct}: it is at least 0.1 and at most 1")
    needed = ("onnx", "onnxscript", "onnxruntime") if "onnx" in options.formats else ()
    if missing := [name for name in needed if find_spec(name) is None]:
        raise RuntimeError(f"--format onnx needs {', '.join(missing)}: pip install '.[build]' brings all of it")


def load_model(options: BuildOptions) -> tuple[nn.Module, ModelConfig]:
    """The training-form model in eval mode and its config: from a folder, a weights file or, on request, random."""
    config = checkpoint_config(options.weights, options.arch or "")
    if config is None:
        if options.arch is None:
            raise ValueError(
                f"--arch is needed: no {CONFIG_FILE} lies beside {options.weights} that training has written"
            )
        config = _config_of_arch(options.arch, options)
    if config.num_classes == 1:
        raise ValueError(
            "a model of 1 class answers nothing: fine-tune a pre-trained encoder (training.finetune) first"
        )
    for name in ("image_size", "crop_pct", "crop_mode"):
        if (value := getattr(options, name)) is not None:
            config = replace(config, **{name: value})
    if "torchscript" in options.formats and not is_timm(config.arch) and native_library() is None:
        raise RuntimeError("the native library is not built: make native (or python -m kernels.native.build)")
    model = create_model(config.arch, config.num_classes, config.image_size)
    if options.weights is not None:
        load_weights(model, options.weights)
    return model.eval(), config


def _config_of_arch(arch: str, options: BuildOptions) -> ModelConfig:
    """A plain weights file has as many classes as its head, random weights as many as labels, else ImageNet's 1000."""
    count = None
    if options.weights is not None:
        count = count_classes(arch, options.weights)
    elif options.labels is not None:
        count = len(read_labels(options.labels))
    return ModelConfig(arch=arch, num_classes=count or 1000)


def labels_of(options: BuildOptions, config: ModelConfig) -> list[str]:
    """One label a class: the file's, else the checkpoint's, else the class numbers."""
    if options.labels is not None:
        return read_labels(options.labels)
    return list(config.labels) if config.labels else [str(index) for index in range(config.num_classes)]


def read_labels(path: Path) -> list[str]:
    """One label a line, the last one with or without its end (\\n, \\r\\n); as training reads a shard's."""
    try:
        labels = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    if "" in labels:
        raise ValueError(f"{path}: line {labels.index('') + 1} is empty: a label is needed in each")
    return labels
