"""Shared by the benchmarks of a server: the same steps without it, an ensemble of empty steps, results files."""

import functools
import importlib
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.harness import ROOT, publish, versions
from benchmarks.photographs import turned

IMAGE_SIZE = 224
SPREAD = 3.0  # standard deviation of the logits, as in a trained network
STEP = ROOT / "model_repository/preprocess/1"
TOKEN = "benchmark"  # of shared memory
RELATIVE, ABSOLUTE = {"fp32": 2e-2, "bf16": 2e-1}, 1e-4  # of probabilities: servers sum in another order
EMPTY_STEP = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
        pixels = np.zeros((len(images), SIZE, SIZE, 3), np.uint8)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", pixels)])
"""


def bare_pipeline(repository: Path, threads: int) -> Callable[[bytes], Any]:
    """Return a function from encoded bytes to probabilities [1,classes] that runs the steps without a server."""
    import torch

    from server.model_configs import read_config

    torch.set_num_threads(threads)
    torch.jit.enable_onednn_fusion(True)
    transform = load_transform(repository / "preprocess/1")
    values = {name: each.string_value for name, each in read_config(repository, "preprocess").parameters.items()}
    sizes = {name: int(values[name]) for name in ("image_size", "resize_size")}
    settings = transform.Settings(**sizes, interpolation=values["interpolation"], crop_mode=values["crop_mode"])
    (model,) = (repository / "backbone").glob("*/model.pt")
    backbone = torch.jit.load(str(model))

    def run(data: bytes) -> Any:
        with torch.inference_mode():
            found = backbone(torch.from_numpy(transform.preprocess(data, settings).copy()).unsqueeze(0))
            return (found[0] if isinstance(found, tuple) else found).softmax(1)

    return run


@functools.cache
def expected(repository: Path, threads: int) -> list[list[float]]:
    """The probabilities of each picture of `turned`, by `bare_pipeline`."""
    run = bare_pipeline(repository, threads)
    return [run(picture)[0].tolist() for picture in turned()]


def is_right(answer: bytes, right: np.ndarray) -> bool:
    """Whether the bytes of an answer's float32 probabilities are those of `bare_pipeline`, within the tolerance."""
    if len(answer) != right.nbytes:
        return False
    return np.allclose(np.frombuffer(answer, np.float32), right, RELATIVE["fp32"], ABSOLUTE)


def random_network(arch: str, image_size: int = IMAGE_SIZE) -> tuple[Any, Any]:
    """Return a network with the same random weights at each call, and its configuration. Its head is scaled so that
    images' answers differ.

    Without that all images' probabilities are the same to 1 in 10,000, and any server that answers 0.001 is right.
    """
    import torch

    from export.parity import real_pixels
    from models import ModelConfig, create_model

    torch.manual_seed(0)
    config = ModelConfig(arch=arch, image_size=image_size, crop_pct=0.875, interpolation="bicubic")
    network = create_model(arch, image_size=image_size).eval()
    pixels = real_pixels(None, image_size).permute(0, 3, 1, 2).float() / 255
    images = (pixels - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(config.std).view(3, 1, 1)
    with torch.inference_mode():
        logits = network(images)
        head: Any = network.get_classifier()  # type: ignore[operator]
        centre, spread = logits.mean(0), (logits - logits.mean(0)).std()
        head.weight.mul_(SPREAD / spread)
        head.bias.copy_((head.bias - centre) * SPREAD / spread)
    return network, config


def random_checkpoint(arch: str, folder: Path) -> Path:
    """Write a `random_network` to `folder`, and return that."""
    from models import save_checkpoint

    save_checkpoint(folder, *random_network(arch))
    return folder


def check(name: str, answer: list[dict[str, Any]], right: list[float], precision: str = "fp32") -> None:
    """Raise `SystemExit` for a wrong answer: the server's figures would mean nothing."""
    if wrong := difference(answer, right, precision):
        raise SystemExit(f"{name}: {wrong}")


def difference(
    answer: list[dict[str, Any]], right: Sequence[float], precision: str = "fp32", classes: int = 5
) -> str | None:
    """Return how an answer's best `classes` differ from the probabilities `right`; None if within the tolerance."""
    best, relative = max(range(len(right)), key=right.__getitem__), RELATIVE[precision]
    for entry in answer:
        wanted = right[entry["index"]]
        if not abs(entry["probability"] - wanted) <= ABSOLUTE + relative * wanted:
            return f"class {entry['index']} has {entry['probability']:.6f}, not {wanted:.6f}"
    if len(answer) != classes or right[answer[0]["index"]] < (1 - relative) * right[best] - ABSOLUTE:
        return f"{answer}: the best class is {best} with {right[best]:.6f}"
    return None


def load_transform(folder: Path) -> Any:
    """Import evaluation_transform.py of a preprocess step, with the library that the server gives it."""
    from server.libraries import find_resize

    library = find_resize()
    served = {} if library is None else {"WIDEFIELD_RESIZE": str(library)}
    # The Python backend has the step's folder on its path too.
    with patch.dict(os.environ, served), patch.object(sys, "path", [*sys.path, str(folder)]):
        return importlib.import_module("evaluation_transform")


def empty_ensemble(repository: Path, target: Path) -> Path:
    """Copy the repository to `target`, with steps that take the same tensors and compute nothing; returns `target`."""
    import torch

    shutil.copytree(repository, target, ignore=shutil.ignore_patterns("build.json"))
    (target / "preprocess/1/model.py").write_text(EMPTY_STEP.replace("SIZE", str(IMAGE_SIZE)))
    (model,) = (target / "backbone").glob("*/model.pt")

    class Nothing(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.zeros(pixels.shape[0], 1000)

    torch.jit.script(Nothing().eval()).save(str(model))
    return target


def steps_ms(steps: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return {model: {phase: mean milliseconds}} of `client.step_times`."""
    return {model: {name: round(one.mean_ms, 3) for name, one in times.items()} for model, times in steps.items()}


def write_served(name: str, jpeg: bytes, warning: str | None, **content: Any) -> None:
    """`publish` the results of a benchmark that serves `jpeg`, with the versions of the packages involved."""
    publish(
        name,
        warning=warning,
        image=f"JPEG 960x640, {len(jpeg)} bytes",
        image_size=IMAGE_SIZE,
        versions=versions("torch", "nvidia-pytriton", "tritonclient", "numpy", "pillow"),
        **content,
    )
