"""Fixtures of the training tests: a few digits, a small model, a short run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models import create_model
from models.replknet import RepLKNet
from tests.one_thread import _one_thread  # noqa: F401 (a fixture)
from tests.training.runs import QUIET, few_digits
from training.finetune import train
from training.finetune_config import Config
from training.presets import PRESETS


@pytest.fixture(scope="session")
def small_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tenth of the digits 0, 1 and 4: 32 of each to train on, 8 held out."""
    return few_digits(tmp_path_factory.mktemp("small"), ("0", "1", "4"))


@pytest.fixture(scope="module")
def model() -> RepLKNet:
    """Five classes; its batch norms have seen batches, and its head has a bias."""
    torch.manual_seed(0)
    network = create_model("replknet_nano", 5).train()
    for _ in range(2):
        network(torch.randn(4, 3, 96, 96))
    torch.nn.init.normal_(network.head.bias)
    return network.eval()


@pytest.fixture(scope="session")
def tiny(small_digits: Path) -> Callable[..., Config]:
    """tiny(output, **changes): two epochs of six steps each on the small digits."""

    def make(output: Path, **changes: object) -> Config:
        values = {"data": small_digits, "output": output, "epochs": 2, "batch_size": 16, "workers": 0}
        values |= {"warmup_epochs": 0.5, "ema_decay": 0.5, "device": "cpu"}
        return dataclasses.replace(PRESETS["digits"], **{**values, **changes})

    return make


@pytest.fixture(scope="session")
def whole(tiny: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing cut off, as tiny() says."""
    output = tmp_path_factory.mktemp("whole")
    train(tiny(output), QUIET)
    return output
