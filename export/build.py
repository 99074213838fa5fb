"""One build: load, re-parameterise, export, compare with eager, write the repository."""

import io
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from export.configs import ServingSpec
from export.onnx import export_onnx
from export.parity import Parity, check_parity, real_pixels
from export.repository import check_output, sha256, write_repository
from export.source import BuildOptions, check_options, labels_of, load_model
from export.torchscript import ServedBackbone, load_torchscript, save_torchscript, trace_backbone
from models import WithClassMap, check_logits, class_maps, reparameterize
from models.cores import usable_cores
from models.weights import weights_file

__all__ = ["BuildOptions", "build"]


def build(options: BuildOptions) -> str:
    """Build the repository and return a summary to print.

    Raises `ValueError`, `OSError` or `RuntimeError` (or their subclasses: `WeightsError`, `ParityError`,
    `RepositoryError`), and leaves the repository as it was before.
    """
    check_options(options)
    check_output(options.output, options.version)
    started = time.perf_counter()
    model, config = load_model(options)
    labels = labels_of(options, config)
    size = config.image_size
    check_logits(model, config.num_classes, size)
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
        crop_mode=config.crop_mode,
        fill=config.fill,
        num_classes=config.num_classes,
        threads=options.threads or usable_cores(),
        backbone_backend="pytorch" if "torchscript" in options.formats else "onnxruntime",
        class_map=map_size,
    )

    parities: list[Parity] = []

    def write_backbone(folder: Path) -> dict[str, Any]:
        parities.append(check_parity("the re-parameterised model", eager, served, pixels, options.precision))
        if "torchscript" in options.formats:
            path = folder / "model.pt"
            save_torchscript(trace_backbone(served, size), path)
            loaded = load_torchscript(path)
            parities.append(check_parity("TorchScript", eager, loaded, pixels, options.precision))
        if "onnx" in options.formats:
            path = folder / "model.onnx"
            export_onnx(served, size, path)
            parities.append(check_parity("ONNX Runtime", eager, _OnnxBackbone(path), pixels, options.precision))
        return {
            "config": asdict(config),
            "weights_sha256": sha256(weights_file(options.weights)) if options.weights else None,
            "precision": options.precision,
            "torch": torch.__version__,
            "parity": [asdict(parity) for parity in parities],
        }

    warmup_image = _warmup_image(pixels[0], spec.resize_size)
    version, notes = write_repository(options.output, spec, labels, write_backbone, warmup_image, options.version)
    seconds = time.perf_counter() - started
    percent = 100 * max(1e-6, *(parity.largest_difference for parity in parities))
    return (
        f"{options.output}: {config.arch}, version {version}, {config.num_classes} classes, {size} px, "
        f"{options.precision}, {' and '.join(options.formats)}; within {percent:.2g} % of eager's largest "
        f"{'value' if options.class_map else 'logit'} on {len(pixels)} crops; {seconds:.0f} s"
        + "".join(f"; {note}" for note in notes)
        + ("" if "torchscript" in options.formats else "; for the onnxruntime backend, which NVIDIA's container has")
    )


@torch.inference_mode()
def _map_size(model: nn.Module, image_size: int) -> tuple[int, int]:
    """Return height and width of the class map. Raises `ValueError` for a network that has no exact one."""
    features = model.forward_features(torch.randn(1, 3, image_size, image_size))  # type: ignore[operator]
    height, width = class_maps(model, features).shape[2:]
    return height, width


class _OnnxBackbone:
    """ONNX Runtime as a function of pixels."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def __call__(self, pixels: Tensor) -> list[Tensor]:
        return [torch.from_numpy(output) for output in self.session.run(None, {"pixels": pixels.numpy()})]


def _warmup_image(pixels: Tensor, resize_size: int) -> bytes:
    """The largest JPEG that the preprocess step decodes in full: the first request finds its memory allocated."""
    size = (6 * resize_size, 2 * math.ceil(2.25 * resize_size) - 1)  # with one row more it is decoded at half its size
    buffer = io.BytesIO()
    Image.fromarray(pixels.numpy()).resize(size).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
