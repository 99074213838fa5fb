"""build_models.py: what it writes."""

import hashlib
import io
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from built_repository import SIZE, config, digest
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc import model_config_pb2

from benchmarks.served import load_transform
from export.build import BuildOptions, build
from export.parity import Parity, check_parity, real_pixels
from export.torchscript import ServedBackbone
from models import ModelConfig, create_model, load_checkpoint, load_config, save_checkpoint
from server.checksums import ChecksumError, compare_newest
from server.repository import read_repository


def test_repository_has_every_file(repository: Path) -> None:
    expected = {
        "preprocess/config.pbtxt",
        "preprocess/configs/embedded.pbtxt",
        "preprocess/1/build.json",
        "preprocess/1/evaluation_transform.py",
        "preprocess/1/model.py",
        "preprocess/1/pillow_resize.py",
        "preprocess/warmup/image",
        "backbone/config.pbtxt",
        "backbone/configs/embedded.pbtxt",
        "backbone/1/model.pt",
        "backbone/1/model.onnx",
        "backbone/1/build.json",
        "softmax/config.pbtxt",
        "softmax/configs/embedded.pbtxt",
        "softmax/1/build.json",
        "softmax/1/model.pt",
        "classifier/config.pbtxt",
        "classifier/labels.txt",
        "classifier/1/.gitkeep",
        "classifier/1/build.json",
    }
    assert set(digest(repository)) == expected
    assert not [p for p in repository.parent.iterdir() if p != repository], "the staging folder is left behind"


def test_where_the_embedded_servers_configs_differ(repository: Path) -> None:
    for name in ("preprocess", "backbone"):
        text = (repository / name / "configs/embedded.pbtxt").read_text()
        embedded, plain = text_format.Parse(text, model_config_pb2.ModelConfig()), config(repository, name)
        assert list(embedded.dynamic_batching.preferred_batch_size) == [2 if name == "backbone" else 4]
        del embedded.dynamic_batching.preferred_batch_size[:]
        if name == "preprocess":
            assert (embedded.backend, plain.backend) == ("python_in_process", "python")
            embedded.backend = plain.backend
        if name == "backbone":
            cpu = model_config_pb2.ModelInstanceGroup.KIND_CPU
            assert [(group.count, group.kind) for group in embedded.instance_group] == [(2, cpu)]
            del embedded.instance_group[:]
            keys = ("INTRA_OP_THREAD_COUNT", "LONE_THREAD_COUNT", "ENABLE_WEIGHT_SHARING")
            assert [embedded.parameters.pop(key).string_value for key in keys] == ["1", "2", "true"]
            assert plain.parameters.pop("INTRA_OP_THREAD_COUNT").string_value == "2"
        assert embedded == plain
    text = (repository / "softmax/configs/embedded.pbtxt").read_text()
    embedded, plain = text_format.Parse(text, model_config_pb2.ModelConfig()), config(repository, "softmax")
    assert embedded.parameters.pop("ENABLE_ONEDNN_FUSION").string_value == "false"
    threads = [each.parameters.pop("INTRA_OP_THREAD_COUNT").string_value for each in (embedded, plain)]
    assert threads == ["1", "2"]  # the native backend has one number for the process, the first model's
    assert embedded == plain


def test_onnx_alone(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread counts have the names that tritonserver's onnxruntime backend uses."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 5})
    summary = build(BuildOptions(weights=checkpoint, output=tmp_path / "models", formats=("onnx",)))
    assert summary.startswith(f"{tmp_path}/models: replknet_nano, version 1, 5 classes, 64 px, fp32, onnx; within 0.0")
    assert " % of eager's largest logit on 8 crops; " in summary
    assert summary.endswith(" s; for the onnxruntime backend, which NVIDIA's container has")
    backbone = config(tmp_path / "models", "backbone")
    assert backbone.backend == "onnxruntime"
    threads = {key: value.string_value for key, value in backbone.parameters.items()}
    assert threads == {"intra_op_thread_count": "3", "inter_op_thread_count": "1"}
    assert [path.name for path in (tmp_path / "models/backbone/1").glob("model.*")] == ["model.onnx"]


def test_an_edit_of_the_config_that_the_embedded_server_does_not_read_is_told(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, own := tmp_path / "models")
    assert (read_repository(own).unchecked, read_repository(own).overridden) == ("", ())
    path = own / "preprocess" / "config.pbtxt"
    path.write_text(path.read_text().replace("count: 2", "count: 3"))
    (line,) = read_repository(own).overridden
    assert line.startswith("preprocess/config.pbtxt was changed, but the embedded server reads preprocess/configs/")
    embedded = own / "preprocess" / "configs/embedded.pbtxt"
    embedded.write_text(embedded.read_text().partition("\n")[2])
    assert read_repository(own).overridden == ()


def test_configs_agree(repository: Path) -> None:
    preprocess, backbone, softmax, classifier = (
        config(repository, name) for name in ("preprocess", "backbone", "softmax", "classifier")
    )
    assert list(preprocess.output[0].dims) == list(backbone.input[0].dims) == [SIZE, SIZE, 3]
    assert preprocess.output[0].data_type == backbone.input[0].data_type == model_config_pb2.TYPE_UINT8
    assert list(backbone.output[0].dims) == list(softmax.input[0].dims) == list(classifier.output[0].dims) == [5]
    assert [step.model_name for step in classifier.ensemble_scheduling.step] == ["preprocess", "backbone", "softmax"]
    assert {c.max_batch_size for c in (preprocess, backbone, softmax, classifier)} == {16}
    libtorch = {"INFERENCE_MODE": "true", "INTRA_OP_THREAD_COUNT": "2", "INTER_OP_THREAD_COUNT": "1"}
    for each in (backbone, softmax):
        assert {key: value.string_value for key, value in each.parameters.items()} == libtorch
    assert preprocess.parameters["resize_size"].string_value == "73", "64 / 0.875, rounded down as in timm"
    assert all(not c.runtime for c in (backbone, softmax)), "runtime would tie the repository to one server"
    warmed = [[(each.batch_size, each.count) for each in c.model_warmup] for c in (preprocess, backbone, softmax)]
    assert warmed == [[(1, 3)], [(4, 3), (1, 3)], [(1, 3)]], "the backbone's last one is of what most requests are"
    for each in (preprocess, backbone):
        queue = each.dynamic_batching.default_queue_policy
        assert (queue.timeout_action, queue.default_timeout_microseconds) == (queue.REJECT, 5_000_000)
        assert (queue.allow_timeout_override, queue.max_queue_size) == (True, 1024)
    instances = [[(group.kind, group.count) for group in c.instance_group] for c in (preprocess, backbone, softmax)]
    cpu = model_config_pb2.ModelInstanceGroup.KIND_CPU
    assert instances == [[(cpu, 2)], [], [(cpu, 1)]], "an image is decoded while another is answered"
    assert (repository / "classifier" / "labels.txt").read_text() == "ant\nbee: honey\ncat\ndog\nélan\n"


def test_warmed_up_with_a_picture_as_large_as_is_decoded_in_full(repository: Path) -> None:
    """Its memory is then there before the first request; with one pixel more it would be decoded at half its size."""
    element = (repository / "preprocess/warmup/image").read_bytes()
    data = element[4:]
    assert element[:4] == len(data).to_bytes(4, "little"), "as tritonserver has a string"
    transform = load_transform(repository / "preprocess/1")
    resize_size = int(config(repository, "preprocess").parameters["resize_size"].string_value)
    settings = transform.Settings(SIZE, resize_size, "bicubic")
    with Image.open(io.BytesIO(data)) as image:
        size = image.size
        assert transform.decode(image, settings) is None
        assert image.size == size
        buffer = io.BytesIO()
        image.resize((size[0], size[1] + 1)).save(buffer, "JPEG")
    with Image.open(buffer) as larger:
        assert transform.decode(larger, settings) is not None


def test_torchscript_equals_training_form_at_any_batch(repository: Path, checkpoint: Path) -> None:
    model, model_config = load_checkpoint(checkpoint)
    loaded = torch.jit.load(str(repository / "backbone/1/model.pt"))
    pixels = real_pixels(None, SIZE, count=7)
    images = pixels.permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (model_config.mean, model_config.std))
    with torch.inference_mode():
        expected = model.double().eval()((images - mean) / std)
        for batch in (1, 2, 7):
            logits = loaded(pixels[:batch])
            torch.testing.assert_close(logits.double(), expected[:batch], rtol=1e-4, atol=1e-4)
    softmax = torch.jit.load(str(repository / "softmax/1/model.pt"))
    torch.testing.assert_close(softmax(logits), logits.softmax(1))


def test_torchscript_holds_the_operator_and_no_device(repository: Path) -> None:
    """Loading maps constants to the server's device; a device in the graph itself would stay the tracing machine's."""
    graph = torch.jit.load(str(repository / "backbone/1/model.pt")).inlined_graph
    assert "widefield::depthwise_conv2d" in str(graph)
    assert "batch_norm" not in str(graph)
    assert "prim::GetAttr" not in str(graph), "oneDNN's fusion packs weights that are constants"
    constants = [
        node for node in graph.findAllNodes("prim::Constant") if node.output().type().kind() == "DeviceObjType"
    ]
    assert not constants, "the trace bakes in a device"
    assert 'value="cpu"' not in str(graph)


def test_onnx_is_standard_and_dynamic(repository: Path) -> None:
    path = repository / "backbone/1/model.onnx"
    model = onnx.load(str(path))
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 18)]
    graph = model.graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert any(node.op_type == "Conv" for node in graph.node)
    assert [tensor.name for tensor in (*graph.input, *graph.output)] == ["pixels", "logits"], "config.pbtxt's"
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    loaded = torch.jit.load(str(repository / "backbone/1/model.pt"))
    pixels = real_pixels(None, SIZE, count=5)
    for batch in (1, 5):
        (logits,) = session.run(None, {"pixels": pixels[:batch].numpy()})
        np.testing.assert_allclose(logits, loaded(pixels[:batch]).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_build_record_names_what_was_built(repository: Path, checkpoint: Path) -> None:
    record = json.loads((repository / "backbone/1/build.json").read_text())
    assert record["config"] == asdict(load_config(checkpoint))
    assert (record["precision"], record["torch"]) == ("fp32", torch.__version__)
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert record["weights_sha256"] == weights
    assert record["files_sha256"]["model.pt"] == digest(repository)["backbone/1/model.pt"]
    assert {p["name"] for p in record["parity"]} == {"the re-parameterised model", "TorchScript", "ONNX Runtime"}


def test_a_change_of_any_file_is_seen(repository: Path, tmp_path: Path) -> None:
    """Except the configs, which the operator may change."""
    bytecode = shutil.ignore_patterns("__pycache__")  # of a test that has imported the step
    root = shutil.copytree(repository, tmp_path / "models", ignore=bytecode)
    compare_newest(root)
    built = {path for path in root.rglob("*") if path.is_file()}
    built -= {path for path in built if path.suffix == ".pbtxt" or path.name in (".gitkeep", "build.json")}
    assert len(built) == 8
    for path in sorted(built):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(ChecksumError, match=f"{path} is not what was built"):
            compare_newest(root)
        path.write_bytes(whole)
    compare_newest(root)


def test_timms_crop_mode_reaches_the_server(tmp_path: Path) -> None:
    arch, folder, output = "timm/test_convnext.r160_in1k", tmp_path / "checkpoint", tmp_path / "models"
    for mode, fill in (("squash", "0,0,0"), ("border", "128,64,0")):
        preparation = {"image_size": SIZE, "crop_mode": mode, "interpolation": "bilinear", "mean": [0.5, 0.25, 0.001]}
        save_checkpoint(folder, create_model(arch, 5, SIZE), ModelConfig(arch, 5, **preparation))
        build(BuildOptions(weights=folder, output=output, threads=1))
        parameters = config(output, "preprocess").parameters
        assert parameters["crop_mode"].string_value == mode
        assert parameters["fill"].string_value == fill
        assert parameters["interpolation"].string_value == "bilinear"


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("fp16", 0.02)])
def test_half_precision_is_half_as_large_and_answers_float32(
    precision: str,
    tolerance: float,
    repository: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is compared with the float32 model, not with one that is rounded already."""
    compared = []

    def check(name: str, eager: ServedBackbone, *rest: Any) -> Parity:
        compared.append(eager.dtype)
        return check_parity(name, eager, *rest)

    monkeypatch.setattr("export.build.check_parity", check)
    summary = build(BuildOptions(weights=checkpoint, output=tmp_path / "models", precision=precision))
    assert compared == [torch.float32] * 2
    model = tmp_path / "models/backbone/1/model.pt"
    assert torch.jit.load(str(model))(real_pixels(None, SIZE, count=2)).dtype == torch.float32
    record = json.loads(model.with_name("build.json").read_text())
    assert (record["precision"], {each["tolerance"] for each in record["parity"]}) == (precision, {tolerance})
    largest = max(each["largest_difference"] for each in record["parity"])
    assert f"; within {100 * largest:.2g} % of eager's largest logit on 8 crops; " in summary
    assert model.stat().st_size < 0.6 * (repository / "backbone/1/model.pt").stat().st_size
