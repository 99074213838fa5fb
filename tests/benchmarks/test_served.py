"""The steps without a server: they do what the repository's own do, and what answers otherwise is not timed."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import first_request, overload, served, serving_overhead
from benchmarks.served import check
from client import Prediction
from export.build import BuildOptions
from export.parity import real_pixels

CONFIG = 'parameters {{ key: "{}" value {{ string_value: "{}" }} }}\n'
VALUES = {"image_size": "8", "resize_size": "9", "interpolation": "bilinear", "crop_mode": "squash"}


def test_the_bare_pipeline_prepares_as_the_repository_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of timm's may have another crop: the baseline would do other work than the server."""
    (tmp_path / "preprocess").mkdir()
    text = "".join(CONFIG.format(*each) for each in VALUES.items())
    (tmp_path / "preprocess/config.pbtxt").write_text(text)
    (tmp_path / "backbone/1").mkdir(parents=True)
    torch.jit.script(torch.nn.Flatten()).save(str(tmp_path / "backbone/1/model.pt"))
    asked = []
    step = SimpleNamespace(Settings=lambda **values: values)
    step.preprocess = lambda data, settings: asked.append(settings) or np.zeros((2, 2, 3), np.float32)
    monkeypatch.setattr(served, "load_transform", lambda folder: step)
    assert served.bare_pipeline(tmp_path, torch.get_num_threads())(b"image").tolist() == [[pytest.approx(1 / 12)] * 12]
    assert asked == [VALUES | {"image_size": 8, "resize_size": 9}]


RIGHT = [0.1, 0.3, 0.2, 0.15, 0.25]
ANSWER = [{"label": str(i), "index": i, "probability": RIGHT[i]} for i in (1, 4, 2, 3, 0)]


def test_an_answer_that_is_another_is_named() -> None:
    check("gRPC", ANSWER, RIGHT)
    with pytest.raises(SystemExit, match=r"gRPC: class 1 has 0\.310000, not 0\.300000"):
        check("gRPC", [ANSWER[0] | {"probability": 0.31}, *ANSWER[1:]], RIGHT)
    with pytest.raises(SystemExit, match="gRPC: class 1 has nan"):
        check("gRPC", [ANSWER[0] | {"probability": float("nan")}, *ANSWER[1:]], RIGHT)
    check("gRPC", [ANSWER[0] | {"probability": 0.35}, *ANSWER[1:]], RIGHT, "bf16")
    with pytest.raises(SystemExit, match=r"the best class is 1 with 0\.3"):
        check("gRPC", ANSWER[1:], RIGHT)


@pytest.mark.parametrize("wrong", ["grpc", "http", "mapped"])
def test_what_serving_adds_is_not_measured_on_other_answers(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def server(repository, **_):
        name = "mapped" if repository.name == "with_class_map" else ""
        yield SimpleNamespace(grpc_url=name or "grpc", http_url=name or "http")

    @contextmanager
    def classifier(url, **_):
        answer = [Prediction(**each) for each in (ANSWER[::-1] if url == wrong else ANSWER)]
        yield SimpleNamespace(classify=lambda data, top: answer, status=list)

    monkeypatch.setattr("export.build.build", lambda options: None)
    monkeypatch.setattr(serving_overhead, "random_checkpoint", lambda arch, folder: folder)
    monkeypatch.setattr("server.TritonServer", server, raising=False)
    monkeypatch.setattr("client.Classifier", classifier)
    monkeypatch.setattr(serving_overhead, "bare_pipeline", lambda *_: lambda data: torch.tensor([RIGHT]))
    monkeypatch.setattr(serving_overhead, "empty_ensemble", lambda repository, target: target)
    monkeypatch.setattr(serving_overhead, "interleaved", lambda *_, **__: pytest.fail("timed"))
    with pytest.raises(SystemExit, match=r"the best class is 1 with 0\.3"):
        serving_overhead.measure("replknet_nano", b"image", 1, 1)


@pytest.mark.parametrize(
    "measure",
    [
        lambda: serving_overhead.measure("replknet_nano", b"image", 1, 1),
        lambda: overload.measure("replknet_nano", b"image", 1.0, 1, 1.0, 1),
        lambda: first_request.measure("replknet_nano", b"image", 1),
    ],
    ids=["serving_overhead", "overload", "first_request"],
)
def test_the_network_is_one_whose_answers_differ(measure, monkeypatch: pytest.MonkeyPatch) -> None:
    """At random weights as they are drawn an image's probabilities are within 3e-5 of another's."""
    saved = {}

    def build(options: BuildOptions) -> None:
        raise RuntimeError(f"built of {saved[options.weights]}")

    monkeypatch.setattr("models.save_checkpoint", lambda folder, network, config: saved.update({folder: network}))
    monkeypatch.setattr(served, "random_network", lambda arch: (f"spread {arch}", None))
    monkeypatch.setattr("export.build.build", build)
    with pytest.raises(RuntimeError, match="built of spread replknet_nano"):
        measure()


def test_the_answer_for_another_image_is_another() -> None:
    """At random weights as they are drawn every class has a thousandth, whatever the image: every answer passes."""
    network, config = served.random_network("replknet_nano")
    pixels = real_pixels(None, config.image_size, 2).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    with torch.inference_mode():
        right, other = network((pixels - mean) / std).softmax(1).tolist()
    best = sorted(range(len(other)), key=other.__getitem__, reverse=True)[:5]
    answer = [{"label": str(index), "index": index, "probability": other[index]} for index in best]
    check("gRPC", answer, other)
    with pytest.raises(SystemExit, match="gRPC: class"):
        check("gRPC", answer, right)
