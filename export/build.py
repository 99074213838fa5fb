"""One build: load, re-parameterise, export, compare with eager, write the repository."""

import hashlib
import io
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from export.configs import ServingSpec
from export.onnx import export_onnx
from export.parity import check_parity, real_pixels
from export.repository import write_repository
from export.torchscript import ServedBackbone, save_torchscript, trace_backbone
from kernels import native_library
from models import (
    ModelConfig,
    WithClassMap,
    check_arch,
    class_maps,
    create_model,
    load_config,
    load_weights,
    reparameterize,
)

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
    precision: str = "fp32"
    formats: tuple[str, ...] = ("torchscript",)
    version: int | None = None
    threads: int = 0
    parity_images: Path | None = None
    class_map: bool = False


def build(options: BuildOptions) -> str:
    """Build the repository and return a summary to print.

    Raises `ValueError`, `OSError` or `RuntimeError` (and their kin: `WeightsError`, `ParityError`, `RepositoryError`)
    with the repository as it was before.
    """
    _check(options)
    started = time.perf_counter()
    model, config = load_model(options)
    labels = _labels(options, config)
    size = config.image_size
    pixels = real_pixels(options.parity_images, size)
    map_size = _map_size(model, size) if options.class_map else None
    networks = [model, reparameterize(model)]
    if options.class_map:
        networks = [WithClassMap(network) for network in networks]
    eager = ServedBackbone(networks[0], config.mean, config.std)
    served = ServedBackbone(networks[1], config.mean, config.std, options.precision)
    spec = ServingSpec(
        image_size=size,
        resize_size=math.floor(size / config.crop_pct),
        interpolation=config.interpolation,
        num_classes=config.num_classes,
        threads=options.threads or os.cpu_count() or 1,
        backbone_backend="pytorch" if "torchscript" in options.formats else "onnxruntime",
        class_map=map_size,
    )

    def write_backbone(folder: Path) -> dict[str, Any]:
        parities = [check_parity("the re-parameterised model", eager, served, pixels, options.precision)]
        if "torchscript" in options.formats:
            path = folder / "model.pt"
            save_torchscript(trace_backbone(served, size), path)
            loaded = torch.jit.load(str(path), map_location="cpu")
            parities.append(check_parity("TorchScript", eager, loaded, pixels, options.precision))
        if "onnx" in options.formats:
            path = folder / "model.onnx"
            export_onnx(served, size, path)
            parities.append(check_parity("ONNX Runtime", eager, _OnnxBackbone(path), pixels, options.precision))
        return {
            "config": asdict(config),
            "weights_sha256": _sha256(_weights_file(options.weights)) if options.weights else None,
            "files_sha256": {p.name: _sha256(p) for p in sorted(folder.iterdir())},
            "precision": options.precision,
            "torch": torch.__version__,
            "parity": [asdict(parity) for parity in parities],
        }

    version = write_repository(options.output, spec, labels, write_backbone, _jpeg(pixels[0]), options.version)
    seconds = time.perf_counter() - started
    return (
        f"{options.output}: {config.arch}, version {version}, {config.num_classes} classes, {size} px, "
        f"{options.precision}, {' and '.join(options.formats)}; equal to eager on {len(pixels)} images; {seconds:.0f} s"
    )


def load_model(options: BuildOptions) -> tuple[nn.Module, ModelConfig]:
    """The training-form model in eval mode and its config: from a folder, a weights file or, on request, random."""
    if options.weights is not None and options.weights.is_dir():
        config = load_config(options.weights)
        if options.arch not in (None, config.arch):
            raise ValueError(f"--arch {options.arch}, but {options.weights} holds {config.arch}: leave --arch out")
    else:
        if options.arch is None:
            raise ValueError("--arch is needed with a weights file that has no config.json beside it")
        config = _config_of_arch(options)
    if options.image_size is not None:
        config = replace(config, image_size=options.image_size)
    model = create_model(config.arch, config.num_classes, config.image_size)
    if options.weights is not None:
        load_weights(model, options.weights)
    return model.eval(), config


@torch.inference_mode()
def _map_size(model: nn.Module, image_size: int) -> tuple[int, int]:
    """Height and width of the class map. Raises `ValueError` for a network that has no exact one."""
    features = model.forward_features(torch.randn(1, 3, image_size, image_size))  # type: ignore[operator]
    height, width = class_maps(model, features).shape[2:]
    return height, width


def _config_of_arch(options: BuildOptions) -> ModelConfig:
    """A plain weights file does not say its classes: as many as there are labels, else ImageNet's 1000."""
    labels = read_labels(options.labels) if options.labels else None
    return ModelConfig(arch=str(options.arch), num_classes=len(labels) if labels else 1000, labels=labels)


def _check(options: BuildOptions) -> None:
    unknown = [name for name in options.formats if name not in FORMATS]
    if unknown or not options.formats:
        raise ValueError(f"--format {','.join(options.formats) or '(empty)'}: choose from {', '.join(FORMATS)}")
    if options.arch is not None:
        check_arch(options.arch)
    if (options.weights is None) == (not options.random_weights):
        raise ValueError("name --weights, or ask for --random-weights (for measuring speed only), not both")
    if options.weights is not None and not options.weights.exists():
        raise FileNotFoundError(f"--weights {options.weights} does not exist")
    if options.version is not None and options.version < 1:
        raise ValueError(f"--version {options.version}: versions are 1, 2, 3, ...")
    if options.image_size is not None and options.image_size < 32:
        raise ValueError(f"--image-size {options.image_size}: the model halves its input five times, 32 is the least")
    if native_library() is None:
        raise RuntimeError("the native library is not built: make native (or python -m kernels.native.build)")


def read_labels(path: Path) -> list[str]:
    """One label a line; the last line may end with or without a newline."""
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def _labels(options: BuildOptions, config: ModelConfig) -> list[str]:
    if options.labels is not None:
        return read_labels(options.labels)
    return list(config.labels) if config.labels else [str(index) for index in range(config.num_classes)]


class _OnnxBackbone:
    """ONNX Runtime as a function of pixels."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in self.session.run(None, {"pixels": pixels.numpy()})]


def _jpeg(pixels: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _weights_file(path: Path) -> Path:
    return path / "model.safetensors" if path.is_dir() else path


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
