"""A checkpoint and the repository that is built from it."""

from pathlib import Path

import pytest
import torch
from built_repository import SIZE

from export.build import BuildOptions, build
from models import ModelConfig, create_model, save_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nano model with the batch statistics that a few real images leave."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    model = create_model("replknet_nano", num_classes=5).train()
    for seed in range(3):
        torch.manual_seed(seed)
        model(torch.randn(4, 3, SIZE, SIZE))
    labels = ["ant", "bee: honey", "cat", "dog", "élan"]
    save_checkpoint(folder, model.eval(), ModelConfig("replknet_nano", num_classes=5, image_size=SIZE, labels=labels))
    return folder


@pytest.fixture(scope="module")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out") / "models"
    build(BuildOptions(weights=checkpoint, output=output, formats=("onnx", "torchscript"), threads=2))
    return output
