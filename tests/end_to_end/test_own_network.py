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
from torch import Tensor

from client import Classifier
from export.build import BuildOptions, build
from export.parity import real_pixels
from models import ModelConfig, count_classes, load_checkpoint, save_checkpoint
from models.errors import SettingsError
from models.registry import IMAGENET_MEAN, IMAGENET_STD, create_model
from models.timm_models import IMPORT
from training.augment import eval_transform
from training.finetune import make_model, parse_arguments

ROOT = Path(__file__).parents[2]
SIZE = 64


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
@pytest.mark.parametrize(
    ("precision", "tolerance", "formats", "class_map"),
    [("fp32", 1e-4, ("torchscript", "onnx"), True), ("bf16", 0.1, ("torchscript",), False)],
)
def test_weights_of_a_training_of_ones_own(
    precision: str, tolerance: float, formats: tuple[str, ...], class_map: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = importlib.import_module("my_net").MyNet(3).train()
    for _ in range(3):
        model(torch.randn(4, 3, SIZE, SIZE))
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\n")
    output = tmp_path / "models"
    given: dict[str, Any] = {"weights": tmp_path / "mine.pt", "labels": tmp_path / "labels.txt", "formats": formats}
    build(
        BuildOptions(
            arch="timm/my_net", image_size=SIZE, output=output, precision=precision, class_map=class_map, **given
        )
    )
    pixels = real_pixels(None, SIZE, 3)
    images = pixels.permute(0, 3, 1, 2) / 255.0
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        expected = model.eval()((images - mean) / std)
        found = torch.jit.load(str(output / "backbone/1/model.pt"))(pixels)
    found = found[0] if class_map else found
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    assert (output / "classifier/labels.txt").read_text() == "ant\nbee\ncat\n"


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor) -> Tensor:
        return 2 * logits


@pytest.fixture
def operator() -> Iterator[Callable[[Tensor], Tensor]]:
    with torch.library._scoped_library("theirs", "FRAGMENT") as library:
        library.define("double(Tensor logits) -> Tensor")
        library.impl("double", lambda logits: 2 * logits, "CompositeExplicitAutograd")
        yield torch.ops.theirs.double


def answers(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any, Tensor], Any]) -> None:
    """Have MyNet answer with change(network, logits)."""
    network = importlib.import_module("my_net").MyNet
    right = network.forward
    monkeypatch.setattr(network, "forward", lambda self, images: change(self, right(self, images)))


def refused(output: Path, message: str) -> None:
    options = BuildOptions(arch="timm/my_net", random_weights=True, image_size=SIZE, output=output)
    with pytest.raises((ValueError, RuntimeError), match=message):
        build(options)
    assert not output.exists()


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda self, logits: (logits, logits), r"MyNet answers .* with a tuple: .* one tensor of logits, \[1, 1000\]"),
        (lambda self, logits: logits[:, :7], r"MyNet answers images \[1, 3, 64, 64\] with \[1, 7\]: a classifier of"),
        (lambda self, logits: logits @ torch.eye(3), r"MyNet cannot run on images \[1, 3, 64, 64\]: RuntimeError: .*"),
        (lambda self, logits: {}["stage9"], r"MyNet cannot run .*: KeyError: 'stage9' \(WIDEFIELD_TRACEBACK=1 shows"),
        (lambda self, logits: Double.apply(logits), "trace of MyNet calls Double, which tritonserver does not have"),
        (lambda self, logits: logits * float(logits.abs().max()), "TorchScript differs from the eager model"),
    ],
    ids=["tuple", "classes", "size", "defect", "autograd.Function", "value"],
)
def test_a_network_that_could_not_be_served_is_refused(
    change: Callable[[Any, Tensor], Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers(monkeypatch, change)
    refused(tmp_path / "models", message)


@pytest.mark.usefixtures("named")
def test_an_operator_that_the_server_does_not_have_is_refused(
    operator: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    answers(monkeypatch, lambda self, logits: operator(logits))
    refused(tmp_path / "models", "trace of MyNet calls theirs::double, which tritonserver does not have")


@pytest.mark.usefixtures("named")
def test_its_kernels_need_the_native_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("export.torchscript.native_library", lambda: None)
    refused(tmp_path / "models", "the native library is not built: make native")


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("made", [None, torch.nn.Linear], ids=["nothing", "class"])
def test_a_function_that_makes_no_network_is_told(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("my_net"), "MyNet", lambda **options: made)
    with pytest.raises(SettingsError, match=r"timm/my_net: its function returns .*: a torch.nn.Module is needed"):
        create_model("timm/my_net", 2)


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


@pytest.mark.usefixtures("named")
def test_the_name_without_timm_is_suggested() -> None:
    with pytest.raises(SettingsError, match=r"such as timm/my_net"):
        create_model("my_net", 2)


@pytest.mark.usefixtures("named")
def test_training_refuses_what_is_no_classifier_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, lambda self, logits: {"logits": logits})
    config = parse_arguments(["--preset", "cpu", "--arch", "timm/my_net", "--drop-path", "0"])
    with pytest.raises(SettingsError, match=r"MyNet answers images .* with a dict: a classifier of 2 classes"):
        make_model(config, ["dark", "light"])
