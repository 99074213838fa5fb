"""A candidate with other answers is not timed: in the preprocess step, a training's images, runtimes on a CPU."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import cpu_inference, preprocess, training_images
from benchmarks.preprocess import BASELINE, OURS
from benchmarks.served import random_network
from benchmarks.timing import Timing
from export.torchscript import ServedBackbone
from models import reparameterize


@pytest.fixture
def timed(monkeypatch):
    """The candidates that were timed, each called once; the first named takes 1 ms, the next 2 ms and so on."""
    names = []

    def interleaved(candidates, rounds, settle=0.0):
        for call in candidates.values():
            call()
        names.extend(candidates)
        return {name: Timing(ms, ms, ms, rounds) for ms, name in enumerate(candidates, 1)}

    for module in (preprocess, cpu_inference):
        monkeypatch.setattr(module, "interleaved", interleaved)
    return names


def test_a_pipeline_that_is_not_equal_is_named_with_its_distance(timed):
    def away(levels, image=b""):
        return lambda data: np.full((2, 2, 3), 100, np.uint8) - np.uint8(levels if data == image or not image else 0)

    pipelines = {OURS: away(1), BASELINE: away(0), "far": away(2), "far of one": away(2, b"second")}
    found = preprocess.compare(pipelines, "two", [b"first", b"second"], rounds=3)
    assert timed == [OURS, BASELINE]
    assert found["rows"] == [
        {"pipeline": OURS, "mean_difference": 1.0, "max_difference": 1}
        | {"images_per_s": 2000.0, "ms": 0.5, "ratio_to_pillow": 2.0},
        {"pipeline": BASELINE, "mean_difference": 0.0, "max_difference": 0}
        | {"images_per_s": 1000.0, "ms": 1.0, "ratio_to_pillow": 1.0},
        {"pipeline": "far", "mean_difference": 2.0, "max_difference": 2},
        {"pipeline": "far of one", "mean_difference": 2.0, "max_difference": 2},
    ]


@pytest.mark.parametrize("tolerance", [cpu_inference.FP32_TOLERANCE, cpu_inference.BF16_TOLERANCE])
def test_a_runtime_that_answers_for_another_image_is_not_timed(timed, monkeypatch, tolerance):
    """At random weights as they are drawn the logits hardly depend on the image: bf16's tolerance let every answer
    pass."""
    network, config = random_network("replknet_nano", 64)
    served = ServedBackbone(reparameterize(network), config.mean, config.std)
    runners = {"eager": (served, tolerance), "OpenVINO fp32": (lambda pixels: served(pixels.roll(1, 0)), tolerance)}
    monkeypatch.setattr(cpu_inference, "exported", lambda *_: served)
    monkeypatch.setattr(cpu_inference, "candidates", lambda *_: runners)
    cpu_inference.measure("replknet_nano", 64, [1], 3)
    assert timed == [*runners]
    with pytest.raises(SystemExit, match="OpenVINO fp32 differs from eager by"):
        cpu_inference.measure("replknet_nano", 64, [8], 3)
    assert timed == [*runners]


def test_every_runtime_has_the_batch_in_its_graph(monkeypatch, tmp_path):
    """OpenVINO and ONNX Runtime choose their kernels and their memory by it."""
    import onnxruntime

    overrides = []
    options = SimpleNamespace(add_free_dimension_override_by_name=lambda *given: overrides.append(given))
    monkeypatch.setattr(onnxruntime, "SessionOptions", lambda: options)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: None)
    monkeypatch.setattr(torch.jit, "load", lambda path: None)
    model, compiled = SimpleNamespace(), []
    model.reshape = lambda shape: setattr(model, "shape", shape)
    core = SimpleNamespace(read_model=lambda path: model, compile_model=lambda *given: compiled.append(given[0].shape))
    monkeypatch.setattr(cpu_inference, "openvino_core", lambda: core)
    cpu_inference.candidates(None, tmp_path, 8, 64, 2)
    assert compiled == [[8, 64, 64, 3]] * 2
    assert overrides == [("batch", 8)]


@pytest.fixture
def runtimes(monkeypatch):
    """runtimes(factor): eager, and an OpenVINO whose logits are `factor` of its; the batches that were asked for."""

    def build(factor):
        batches = []

        def run(pixels):
            batches.append(len(pixels))
            return 1 + pixels.double().mean((1, 2))

        runners = {"eager": (run, 0.0), "OpenVINO fp32": (lambda pixels: factor * run(pixels), 1e-3)}
        monkeypatch.setattr(cpu_inference, "exported", lambda *_: run)
        monkeypatch.setattr(cpu_inference, "candidates", lambda *_: runners)
        return batches

    return build


@pytest.mark.parametrize("factor", [1.002, float("nan")])
def test_a_runtime_that_differs_from_eager_ends_the_run(timed, runtimes, factor):
    runtimes(factor)
    with pytest.raises(SystemExit, match=r"OpenVINO fp32 differs from eager by .* no speed reported"):
        cpu_inference.measure("replknet_nano", 4, [1], 3)
    assert timed == []


def test_runtimes_are_compared_with_openvino(timed, runtimes):
    batches = runtimes(1.0005)
    rows = cpu_inference.measure("replknet_nano", 4, [1, 8], 3)
    assert [(row["batch"], row["runtime"], row["ratio_to_openvino_fp32"]) for row in rows] == [
        (batch, name, ratio) for batch in (1, 8) for name, ratio in (("eager", 0.5), ("OpenVINO fp32", 1.0))
    ]
    assert set(batches) == {1, 8}


@pytest.mark.parametrize(
    ("wrong", "evaluation", "others"),
    [
        (lambda image: (image, 1), False, True),
        (lambda image: (image + 0.01, 0), True, True),
        (lambda image: (image + 0.03, 0), False, True),
        (lambda image: (image.flip(2), 0), False, True),
        (lambda image: (image[:, 1:], 0), False, False),
        (lambda image: (image.double(), 0), False, False),
        (lambda image: (image * float("nan"), 0), False, False),
    ],
    ids=["class", "rounding", "lighter", "mirrored", "smaller", "float64", "not finite"],
)
def test_training_images_that_are_others_are_not_timed(wrong, evaluation, others):
    """Nothing of what was timed was looked at. 0.01 of a standard deviation is about half a grey level."""
    image = torch.rand(3, 224, 224)
    candidates = {training_images.TIMM: [(image, 0)], training_images.OURS: [wrong(image)]}
    for recipe, right in (("evaluation", evaluation), ("crops", others)):
        with nullcontext() if right else pytest.raises(SystemExit, match=f"Widefield, {recipe}, image 0: .* no speed"):
            training_images.check(candidates, recipe)
