"""The networks that every server serves, with random weights: our operator, PyTorch's own convolutions, ONNX."""

import functools
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.served import IMAGE_SIZE, random_network
from benchmarks.serving.servers import NETWORKS

MODELS = {  # name -> architecture, precision
    "nano": ("replknet_nano", "fp32"),
    "small": ("replknet_small", "fp32"),
    "mobilenetv3": ("timm/mobilenetv3_large_100", "fp32"),
    "small-bf16": ("replknet_small", "bf16"),
}
FOLDER = Path("build/serving")


@functools.cache
def build_repository(model: str, threads: int, ways: str = "") -> Path:
    """Build the repository of a `random_network`; beside it the peers' network of `ways`, if that has its own."""
    from export.build import BuildOptions, build
    from export.torchscript import save_torchscript
    from models import save_checkpoint

    repository = FOLDER / model / "model_repository"
    shutil.rmtree(repository, ignore_errors=True)  # it may be of other sources
    arch, precision = MODELS[model]
    network, config = random_network(arch)
    checkpoint = FOLDER / model / "checkpoint"
    save_checkpoint(checkpoint, network, config)
    formats = ("torchscript", "onnx") if ways == "openvino" else ("torchscript",)
    build(BuildOptions(weights=checkpoint, output=repository, precision=precision, threads=threads, formats=formats))
    if ways == "plain":
        save_torchscript(plain_backbone(network, config, precision), repository.parent / NETWORKS[ways])
    elif ways == "openvino":
        shutil.copy(repository / "backbone/1/model.onnx", repository.parent / NETWORKS[ways])
    return repository


def plain_backbone(network: Any, config: Any, precision: str = "fp32") -> Any:
    """Trace the network as it is served, with PyTorch's own convolution instead of ours."""
    from export.torchscript import ServedBackbone, trace_backbone
    from kernels.depthwise_conv2d import pytorch
    from models import reparameterize

    with patch("models.layers.depthwise_conv2d", pytorch.activated_convolution):
        return trace_backbone(ServedBackbone(reparameterize(network), config.mean, config.std, precision), IMAGE_SIZE)
