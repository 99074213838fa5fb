"""build_models.py --class-map: a second output of the backbone, exact, that an ensemble may leave unmapped."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.build import BuildOptions, _OnnxBackbone, build
from export.parity import ParityError, check_parity, real_pixels
from models import ModelConfig, class_maps, create_model, load_checkpoint, save_checkpoint

SIZE = 96
MAP = 3  # positions a side


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    model = create_model("replknet_nano", 5).train()
    for _ in range(2):
        model(torch.randn(4, 3, SIZE, SIZE))
    torch.nn.init.normal_(model.head.weight)
    save_checkpoint(folder, model, ModelConfig("replknet_nano", 5, image_size=SIZE, crop_pct=1.0))
    return folder


@pytest.fixture(scope="module")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out") / "models"
    build(BuildOptions(weights=checkpoint, output=output, formats=("torchscript", "onnx"), threads=1, class_map=True))
    return output


def expected(checkpoint: Path, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits and the best class's map of the training-form model, in float64."""
    model, config = load_checkpoint(checkpoint)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (config.mean, config.std))
    images = (pixels.permute(0, 3, 1, 2).double() / 255 - mean) / std
    with torch.inference_mode():
        logits = model.double()(images)
        maps = class_maps(model, model.forward_features(images))
    return logits, maps[torch.arange(len(pixels)), logits.argmax(1)]


def test_both_formats_have_the_map(repository: Path, checkpoint: Path) -> None:
    pixels = real_pixels(None, SIZE, count=3)
    logits, maps = expected(checkpoint, pixels)
    torch.testing.assert_close(maps.mean((1, 2)), logits.amax(1))
    traced = torch.jit.load(str(repository / "backbone/1/model.pt"))
    onnx = _OnnxBackbone(repository / "backbone/1/model.onnx")
    assert [output.name for output in onnx.session.get_outputs()] == ["logits", "class_map"]
    with torch.inference_mode():
        for batch in (1, 3):
            for exported in (traced, onnx):
                found = exported(pixels[:batch])
                torch.testing.assert_close(found[0].double(), logits[:batch], rtol=1e-3, atol=1e-3)
                torch.testing.assert_close(found[1].double(), maps[:batch], rtol=1e-3, atol=1e-3)


def test_config_is_complete_and_the_ensemble_as_it_was(repository: Path) -> None:
    configs = {
        name: text_format.Parse((repository / name / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
        for name in ("preprocess", "backbone", "classifier", "classifier_explained")
    }
    outputs = [(o.name, o.data_type, list(o.dims)) for o in configs["backbone"].output]
    assert outputs == [
        ("logits", model_config_pb2.TYPE_FP32, [5]),
        ("class_map", model_config_pb2.TYPE_FP32, [MAP, MAP]),
    ]
    assert [o.name for o in configs["classifier"].output] == ["probabilities"]
    assert "class_map" not in str(configs["classifier"])
    assert [o.name for o in configs["classifier_explained"].output] == ["probabilities", "class_map", "crop"]
    assert [o.name for o in configs["preprocess"].output] == ["pixels", "crop"]
    assert list(configs["classifier_explained"].output[1].dims) == [MAP, MAP]


def test_the_pages_tree_is_what_a_build_writes(repository: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
    lines = [line for line in page.splitlines() if re.match(r"    \w+/ +config\.pbtxt", line)]
    assert {line.split("/")[0].strip() for line in lines} == {path.name for path in repository.iterdir()}
    for line in lines:
        name, entries = re.match(r" +(\w+)/ +(.*?)  ", line).groups()
        told = {entry.split("/")[0].replace("N", "1") for entry in entries.split(", ")}
        assert told == {path.name for path in (repository / name).iterdir()}


def test_a_build_without_maps_takes_the_ensemble_away(checkpoint: Path, tmp_path: Path) -> None:
    options = {"weights": checkpoint, "output": tmp_path / "models", "threads": 1}
    assert " % of eager's largest value on 8 crops; " in build(BuildOptions(**options, class_map=True))
    assert (tmp_path / "models/classifier_explained/labels.txt").exists()
    assert "removed version 1" in build(BuildOptions(**options))
    assert not (tmp_path / "models/classifier_explained").exists()


def test_networks_without_an_exact_map_are_refused(tmp_path: Path) -> None:
    options = BuildOptions(arch="timm/mobilenetv3_small_100", random_weights=True, image_size=64, class_map=True)
    with pytest.raises(ValueError, match="no class map is exact"):
        build(BuildOptions(**{**vars(options), "output": tmp_path / "models"}))
    assert not (tmp_path / "models").exists()


def test_parity_compares_the_maps_of_the_same_answer() -> None:
    logits, maps = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.ones(2, 2, 2)
    pixels = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)

    def eager(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return logits[: len(batch)], maps[: len(batch)]

    with pytest.raises(ParityError, match="of the largest value of class_map at batch 1"):
        check_parity("wrong map", eager, lambda batch: (eager(batch)[0], eager(batch)[1] + 1), pixels, "fp32")
    tied = torch.tensor([[1.0, 0.0], [1.0, 1.0 - 1e-6]])

    def candidate(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tied[: len(batch)].flip(1), maps[: len(batch)] + 1

    def near_tie(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tied[1:].expand(len(batch), 2), maps[: len(batch)]

    def other_answer(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tied[1:].flip(1).expand(len(batch), 2), maps[: len(batch)] + 1

    assert check_parity("another answer", near_tie, other_answer, pixels, "fp32").largest_difference < 1e-5
    with pytest.raises(ParityError, match="value of logits"):
        check_parity("wrong logits", near_tie, candidate, pixels, "fp32")
    with pytest.raises(ParityError, match="differs from the eager model by nan"):
        check_parity("no numbers", eager, lambda batch: logits[: len(batch)] * torch.nan, pixels, "fp32")
    assert check_parity("zeros", lambda batch: 0 * eager(batch)[0], lambda batch: 0 * eager(batch)[0], pixels, "fp32")


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", 1e-4), ("fp16", 2e-2), ("bf16", 1e-1)])
def test_parity_allows_what_a_precision_rounds(precision: str, allowed: float) -> None:
    """A share of the largest logit, for one image and for all at once."""
    logits, pixels = torch.tensor([[-4.0, 1.0], [2.0, 0.0]]), torch.zeros(2, 4, 4, 3, dtype=torch.uint8)

    def off_by(share: float, batch_size: int) -> None:
        def candidate(batch: torch.Tensor) -> torch.Tensor:
            return logits[: len(batch)] + (4 * share * allowed if len(batch) == batch_size else 0)

        check_parity("exported", lambda batch: logits[: len(batch)], candidate, pixels, precision)

    for batch_size in (1, 2):
        off_by(0.9, batch_size)
        with pytest.raises(ParityError, match=rf"at batch {batch_size} \(allowed in {precision}: {allowed:g}\)"):
            off_by(1.1, batch_size)


@pytest.mark.server
def test_served_by_the_ensemble_that_maps_it_and_not_by_the_other(
    repository: Path, checkpoint: Path, tmp_path: Path
) -> None:
    import io

    import tritonclient.grpc
    from PIL import Image

    from server import TritonServer

    pixels = real_pixels(None, SIZE, count=2)
    logits, maps = expected(checkpoint, pixels)
    with TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0, log_file=tmp_path / "log") as server:
        client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
        request = tritonclient.grpc.InferInput("pixels", list(pixels.shape), "UINT8")
        request.set_data_from_numpy(pixels.numpy())
        answer = client.infer("backbone", [request])
        np.testing.assert_allclose(answer.as_numpy("class_map"), maps.numpy(), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(answer.as_numpy("logits"), logits.numpy(), rtol=1e-3, atol=1e-3)
        file = io.BytesIO()
        Image.fromarray(pixels[0].numpy()).save(file, "PNG")
        image = tritonclient.grpc.InferInput("image", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[file.getvalue()]], dtype=object))
        answer = client.infer("classifier", [image])
        np.testing.assert_allclose(
            answer.as_numpy("probabilities"), logits[:1].softmax(1).numpy(), rtol=1e-3, atol=1e-3
        )
        assert [output.name for output in answer.get_response().outputs] == ["probabilities"]
        explained = client.infer("classifier_explained", [image])
        np.testing.assert_array_equal(explained.as_numpy("probabilities"), answer.as_numpy("probabilities"))
        np.testing.assert_allclose(explained.as_numpy("class_map"), maps[:1].numpy(), rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(explained.as_numpy("crop"), [[0, 0, 1, 1]])
        wanted = [tritonclient.grpc.InferRequestedOutput("probabilities", class_count=1)]
        (best,) = client.infer("classifier_explained", [image], outputs=wanted).as_numpy("probabilities").reshape(-1)
        assert best.decode().split(":")[2] == str(int(logits[0].argmax()))
        client.close()
