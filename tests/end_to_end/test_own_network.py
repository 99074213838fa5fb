"""The network of docs/training.md, neither ours nor timm's, is trained, built and served."""

import importlib
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from client import Classifier
from export.build import BuildOptions, build
from models import ModelConfig, count_classes, load_checkpoint, save_checkpoint
from models.errors import SettingsError
from models.registry import create_model
from models.timm_models import IMPORT
from training.augment import eval_transform

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's my_net.py."""
    page = (ROOT / "docs/training.md").read_text()
    (section,) = re.findall(r"^### A network of your own$(.*?)^### ", page, re.M | re.S)
    (module,) = re.findall(r"my_net\.py:\n\n(.*?)\n\nThen", section, re.S)
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_net.py").write_text(textwrap.dedent(module))
    return folder


@pytest.fixture
def named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv(IMPORT, "my_net")
    yield
    sys.modules.pop("my_net", None)
    timm.models._registry._model_entrypoints.pop("my_net", None)


@pytest.mark.server
@pytest.mark.usefixtures("named")
def test_trained_built_and_served(folder: Path, serving: Callable[..., Any]) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("dark", "light"):
            (folder / split / label).mkdir(parents=True)
            for index in range(4):
                pixels = random.integers(0, 128, (70, 90, 3), dtype=np.uint8) + 120 * (label == "light")
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / label / f"{index}.png")
    command = ["training.finetune", "--data", str(folder), "--output", str(folder / "run"), "--arch", "timm/my_net"]
    few = ["--preset", "cpu", "--drop-path", "0", "--epochs", "1", "--image-size", "64"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", *command, *few], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    model, config = load_checkpoint(folder / "run")
    assert (type(model).__module__, config.arch) == ("my_net", "timm/my_net")

    def write(repository: Path) -> None:
        summary = build(BuildOptions(weights=folder / "run", output=repository, threads=1))
        assert "timm/my_net, version 1, 2 classes, 64 px" in summary

    paths = sorted(folder.glob("val/*/*.png"))
    images = torch.stack([eval_transform(config)(Image.open(path).convert("RGB")) for path in paths]).double()
    with torch.inference_mode():
        expected = model.double().eval()(images).softmax(1).numpy()
    with serving(write) as server, Classifier(server.grpc_url) as classifier:
        answers = [{each.label: each.probability for each in classifier.classify(path, top=2)} for path in paths]
    np.testing.assert_allclose([[answer["dark"], answer["light"]] for answer in answers], expected, atol=1e-4)


@pytest.mark.usefixtures("named")
def test_what_its_function_does_not_take_is_told() -> None:
    with pytest.raises(SettingsError, match=r"timm/my_net has no drop path"):
        create_model("timm/my_net", 2, drop_path_rate=0.1)


@pytest.mark.usefixtures("named")
def test_a_missing_method_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(importlib.import_module("my_net").MyNet, "get_classifier")
    with pytest.raises(SettingsError, match=r"timm/my_net: MyNet has no get_classifier: timm's models define it"):
        create_model("timm/my_net", 2)


def test_a_module_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IMPORT, "no_such_module")
    with pytest.raises(SettingsError, match=r"WIDEFIELD_IMPORT=no_such_module: ModuleNotFoundError: .*PYTHONPATH"):
        create_model("timm/resnet18", 2)


def test_an_unknown_name_tells_of_the_variable() -> None:
    with pytest.raises(SettingsError, match=r"timm has no model 'zzz' \(WIDEFIELD_IMPORT names a module of yours\)"):
        create_model("timm/zzz", 2)


@pytest.mark.usefixtures("named")
def test_a_constructor_may_read_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ConvNeXt's drop path: on the meta device, where shapes are counted, there is no value."""
    network = importlib.import_module("my_net").MyNet
    made = network.__init__

    def reads(self: Any, num_classes: int) -> None:
        made(self, num_classes)
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 4)]

    monkeypatch.setattr(network, "__init__", reads)
    model, state = create_model("timm/my_net", 2), torch.get_rng_state()
    save_checkpoint(tmp_path, model, ModelConfig("timm/my_net", 2))
    assert torch.equal(torch.get_rng_state(), state)  # a run that is resumed goes on as it would have
    assert count_classes("timm/my_net", tmp_path / "model.safetensors") == 2
    with torch.device("meta"), pytest.raises(SettingsError, match="meta"):
        create_model("timm/my_net", 2)
