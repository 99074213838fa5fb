"""What every server serves: networks with random weights, by our operator and in PyTorch's own convolutions."""

import functools
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.served import IMAGE_SIZE
from benchmarks.serving.servers import PLAIN

MODELS = {  # name -> architecture, precision
    "nano": ("replknet_nano", "fp32"),
    "small": ("replknet_small", "fp32"),
    "mobilenetv3": ("timm/mobilenetv3_large_100", "fp32"),
    "small-bf16": ("replknet_small", "bf16"),
}
FOLDER = Path("build/serving")
SPREAD = 3.0  # standard deviation of the logits, as a trained network's: equal answers then mean something


@functools.cache
def build_repository(model: str, threads: int, plain: bool = False) -> Path:
    """The repository of a network with random weights, its head scaled so that answers differ; `plain`: and PLAIN."""
    import torch

    from export.build import BuildOptions, build
    from export.parity import real_pixels
    from export.torchscript import save_torchscript
    from models import ModelConfig, create_model, save_checkpoint

    repository = FOLDER / model / "model_repository"
    shutil.rmtree(repository, ignore_errors=True)  # of another day's sources
    torch.manual_seed(0)
    arch, precision = MODELS[model]
    config = ModelConfig(arch=arch, image_size=IMAGE_SIZE, crop_pct=0.875, interpolation="bicubic")
    network = create_model(arch, image_size=IMAGE_SIZE).eval()
    pixels = real_pixels(None, IMAGE_SIZE).permute(0, 3, 1, 2).float() / 255
    images = (pixels - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(config.std).view(3, 1, 1)
    with torch.inference_mode():
        logits = network(images)
        head: Any = network.get_classifier()  # type: ignore[operator]
        centre, spread = logits.mean(0), (logits - logits.mean(0)).std()
        head.weight.mul_(SPREAD / spread)
        head.bias.copy_((head.bias - centre) * SPREAD / spread)
    checkpoint = FOLDER / model / "checkpoint"
    save_checkpoint(checkpoint, network, config)
    build(BuildOptions(weights=checkpoint, output=repository, precision=precision, threads=threads))
    if plain:
        save_torchscript(plain_backbone(network, config, precision), repository.parent / PLAIN)
    return repository


def plain_backbone(network: Any, config: Any, precision: str = "fp32") -> Any:
    """The network as it is served, traced with PyTorch's own convolution where ours would be."""
    from export.torchscript import ServedBackbone, trace_backbone
    from kernels.depthwise_conv2d import pytorch
    from models import reparameterize

    def convolve(x: Any, weight: Any, bias: Any = None, activation: str = "none") -> Any:
        return pytorch.activate(pytorch.convolution(x, weight, bias), activation)

    with patch("models.layers.depthwise_conv2d", convolve):
        return trace_backbone(ServedBackbone(reparameterize(network), config.mean, config.std, precision), IMAGE_SIZE)
