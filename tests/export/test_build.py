"""build_models.py: what it writes, what it refuses, and that a failed build changes nothing."""

import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc import model_config_pb2

import export.build as build_module
from benchmarks.serving_overhead import load_transform
from build_models import main, parse_arguments
from export.build import BuildOptions, build
from export.parity import ParityError, real_pixels
from export.source import load_model, read_labels
from models import ModelConfig, create_model, load_checkpoint, load_config, reparameterize, save_checkpoint
from server.repository import read_repository

SIZE = 64


@pytest.fixture(scope="module")
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
    build(BuildOptions(weights=checkpoint, output=output, formats=("torchscript", "onnx"), threads=2))
    return output


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def config(repository: Path, model: str) -> "model_config_pb2.ModelConfig":
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_repository_has_every_file(repository: Path) -> None:
    expected = {
        "preprocess/config.pbtxt",
        "preprocess/configs/embedded.pbtxt",
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
        "softmax/1/model.pt",
        "classifier/config.pbtxt",
        "classifier/labels.txt",
        "classifier/1/.gitkeep",
    }
    assert set(digest(repository)) == expected
    assert not [p for p in repository.parent.iterdir() if p != repository], "the staging folder is left behind"


def test_the_embedded_servers_configs_differ_in_batches_and_threads_alone(repository: Path) -> None:
    for name in ("preprocess", "backbone"):
        text = (repository / name / "configs/embedded.pbtxt").read_text()
        embedded, plain = text_format.Parse(text, model_config_pb2.ModelConfig()), config(repository, name)
        assert list(embedded.dynamic_batching.preferred_batch_size) == [4]
        del embedded.dynamic_batching.preferred_batch_size[:]
        if name == "backbone":
            assert [group.count for group in embedded.instance_group] == [2]
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


def test_onnx_alone(checkpoint: Path, tmp_path: Path) -> None:
    """With the names that tritonserver's onnxruntime backend has for the numbers of threads."""
    build(BuildOptions(weights=checkpoint, output=tmp_path / "models", formats=("onnx",), threads=3))
    backbone = config(tmp_path / "models", "backbone")
    assert backbone.backend == "onnxruntime"
    threads = {key: value.string_value for key, value in backbone.parameters.items()}
    assert threads == {"intra_op_thread_count": "3", "inter_op_thread_count": "1"}
    assert [path.name for path in (tmp_path / "models/backbone/1").glob("model.*")] == ["model.onnx"]


def test_an_edit_of_the_config_that_the_embedded_server_does_not_read_is_told(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, own := tmp_path / "models")
    assert read_repository(own).overridden == ()
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
    assert len({c.max_batch_size for c in (preprocess, backbone, softmax, classifier)}) == 1
    assert backbone.parameters["INTRA_OP_THREAD_COUNT"].string_value == "2"
    assert all(not c.runtime for c in (backbone, softmax)), "runtime would tie the repository to one server"
    assert all(c.model_warmup for c in (preprocess, backbone, softmax))
    assert (repository / "classifier" / "labels.txt").read_text() == "ant\nbee: honey\ncat\ndog\nélan\n"


def test_warmed_up_with_a_picture_as_large_as_is_decoded_in_full(repository: Path) -> None:
    """Memory that the first request would have to fetch is there; one pixel more, and it were decoded at half."""
    data = (repository / "preprocess/warmup/image").read_bytes()[4:]
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
            torch.testing.assert_close(loaded(pixels[:batch]).double(), expected[:batch], rtol=1e-4, atol=1e-4)


def test_torchscript_holds_the_operator_and_no_device(repository: Path) -> None:
    """Loading maps constants to the server's device; a device in the graph itself would stay the tracing machine's."""
    graph = torch.jit.load(str(repository / "backbone/1/model.pt")).inlined_graph
    assert "widefield::depthwise_conv2d" in str(graph)
    assert "batch_norm" not in str(graph)
    constants = [
        node for node in graph.findAllNodes("prim::Constant") if node.output().type().kind() == "DeviceObjType"
    ]
    assert not constants, "the trace bakes in a device"
    assert 'value="cpu"' not in str(graph)


def test_onnx_is_standard_and_dynamic(repository: Path) -> None:
    path = repository / "backbone/1/model.onnx"
    graph = onnx.load(str(path)).graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    assert any(node.op_type == "Conv" for node in graph.node)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    loaded = torch.jit.load(str(repository / "backbone/1/model.pt"))
    pixels = real_pixels(None, SIZE, count=5)
    for batch in (1, 5):
        (logits,) = session.run(None, {"pixels": pixels[:batch].numpy()})
        np.testing.assert_allclose(logits, loaded(pixels[:batch]).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_build_record_names_what_was_built(repository: Path, checkpoint: Path) -> None:
    record = json.loads((repository / "backbone/1/build.json").read_text())
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert record["weights_sha256"] == weights
    assert record["files_sha256"]["model.pt"] == digest(repository)["backbone/1/model.pt"]
    assert {p["name"] for p in record["parity"]} == {"the re-parameterised model", "TorchScript", "ONNX Runtime"}


def test_versions_are_numbered_and_the_newest_three_stay(checkpoint: Path, tmp_path: Path) -> None:
    options = BuildOptions(weights=checkpoint, output=tmp_path / "models", threads=1)
    for _ in range(4):
        build(options)
    assert sorted(p.name for p in (tmp_path / "models/backbone").glob("[0-9]*")) == ["2", "3", "4"]
    for taken in (1, 3, 4):  # 1 is gone, and would be the first to go again
        with pytest.raises(RuntimeError, match=f"--version {taken}: .* choose 5 or more"):
            build(replace(options, version=taken))
    (tmp_path / "models/backbone/5.bak").mkdir()
    summary = build(replace(options, image_size=96))  # earlier versions cannot serve another input size
    assert "removed version 2, 3, 4: other preparation" in summary
    assert {p.name for p in (tmp_path / "models/backbone").iterdir()} == {"1", "5.bak", "config.pbtxt", "configs"}


def test_versions_that_want_other_pixels_do_not_stay(checkpoint: Path, tmp_path: Path) -> None:
    options = BuildOptions(weights=checkpoint, output=tmp_path / "models", threads=1)
    build(options)
    summary = build(replace(options, crop_pct=1.0))  # a rollback to version 1 would give it this one's pixels
    assert "removed version 1: other preparation" in summary


def test_timms_crop_mode_reaches_the_server(tmp_path: Path) -> None:
    arch, folder, output = "timm/test_convnext.r160_in1k", tmp_path / "checkpoint", tmp_path / "models"
    for mode, fill in (("squash", "0,0,0"), ("border", "128,64,0")):
        preparation = {"image_size": SIZE, "crop_mode": mode, "mean": [0.5, 0.25, 0.001]}
        save_checkpoint(folder, create_model(arch, 5, SIZE), ModelConfig(arch, 5, **preparation))
        build(BuildOptions(weights=folder, output=output, threads=1))
        parameters = config(output, "preprocess").parameters
        assert parameters["crop_mode"].string_value == mode
        assert parameters["fill"].string_value == fill


def test_failed_build_leaves_the_repository(
    repository: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest(repository)

    def wrong(model: torch.nn.Module) -> torch.nn.Module:
        deploy = reparameterize(model)
        with torch.no_grad():
            next(deploy.parameters()).add_(0.1)
        return deploy

    monkeypatch.setattr(build_module, "reparameterize", wrong)
    with pytest.raises(ParityError, match="left as it was"):
        build(BuildOptions(weights=checkpoint, output=repository))
    assert digest(repository) == before
    assert not [p for p in repository.parent.iterdir() if p != repository]


def test_a_build_never_writes_through_the_files_in_use(checkpoint: Path, tmp_path: Path) -> None:
    """The staging folder holds hard links: a server that has the old repository open must not see it change."""
    options = BuildOptions(weights=checkpoint, output=tmp_path / "models", threads=1)
    build(options)
    softmax = (tmp_path / "models/softmax/1/model.pt").open("rb")
    labels = (tmp_path / "models/classifier/labels.txt").open("rb")
    changed = tmp_path / "labels.txt"
    changed.write_text("a\nb\nc\nd\ne\n")
    before = softmax.read()
    build(replace(options, labels=changed))
    softmax.seek(0)
    assert softmax.read() == before
    assert labels.read().startswith(b"ant")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_builds_and_answers_float32(precision: str, checkpoint: Path, tmp_path: Path) -> None:
    build(BuildOptions(weights=checkpoint, output=tmp_path / "models", precision=precision))
    logits = torch.jit.load(str(tmp_path / "models/backbone/1/model.pt"))(real_pixels(None, SIZE, count=2))
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--random-weights"),
        (["--arch", "replknet_31c", "--random-weights"], "replknet_31b"),
        (["--weights", "nowhere"], "nowhere does not exist"),
        (["--arch", "replknet_nano", "--random-weights", "--format", "tensorrt"], "torchscript, onnx"),
        (["--arch", "replknet_nano", "--random-weights", "--format", "onnx", "--precision", "bf16"], "bf16"),
        (["--arch", "replknet_nano", "--random-weights", "--image-size", "8"], "32"),
        (["--arch", "replknet_nano", "--random-weights", "--version", "0"], "1, 2, 3"),
        (["--arch", "replknet_nano", "--random-weights", "--crop-pct", "1.5"], "--crop-pct 1.5"),
        (["--random-weights"], "needs --arch"),
        (["--arch", "replknet_nano", "--random-weights", "--labels", "missing.txt"], "missing.txt"),
        (["--arch", "replknet_nano", "--random-weights", "--threads", "-2"], "--threads -2"),
    ],
)
def test_bad_arguments_are_one_clear_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["build_models.py", *arguments, "--output", str(tmp_path / "models")])
    assert main() == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "models").exists()


def test_label_count_must_fit(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    with pytest.raises(RuntimeError, match="2 labels for 5 classes"):
        build(BuildOptions(weights=checkpoint, labels=tmp_path / "labels.txt", output=tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_a_weights_file_beside_its_config(checkpoint: Path, tmp_path: Path) -> None:
    model, config = load_model(BuildOptions(weights=checkpoint / "model.safetensors"))
    assert config == load_config(checkpoint)
    copy = tmp_path / "alone.safetensors"
    shutil.copy(checkpoint / "model.safetensors", copy)
    with pytest.raises(ValueError, match=r"no config.json lies beside .*alone.safetensors"):
        load_model(BuildOptions(weights=copy))
    for other in (None, '{"architecture": "replknet", "num_classes": 7}'):  # Hugging Face's
        if other is not None:
            (tmp_path / "config.json").write_text(other)
        model, config = load_model(BuildOptions(arch="replknet_nano", weights=copy, crop_pct=1.0))
        assert (config.num_classes, config.crop_pct) == (5, 1.0)  # the head says how many
        assert model.head.out_features == 5
    with pytest.raises(ValueError, match=r"--arch is needed: no config.json .* that training has written"):
        load_model(BuildOptions(weights=copy))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        load_model(BuildOptions(arch="replknet_nano", weights=copy))


def test_a_pre_trained_encoder_is_no_classifier(tmp_path: Path) -> None:
    """Its checkpoint has an empty head of one class, whose probability is always 1."""
    folder = tmp_path / "pre-trained"
    save_checkpoint(folder, create_model("replknet_nano", 1), ModelConfig("replknet_nano", 1))
    with pytest.raises(ValueError, match="1 class answers nothing: fine-tune"):
        build(BuildOptions(weights=folder, output=tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_a_broken_parity_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ValueError, match=r"half\.png cannot be decoded"):
        real_pixels(tmp_path, SIZE)


def test_labels_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("ant\nbee\n", encoding="utf-8-sig")
    assert read_labels(tmp_path / "labels.txt") == ["ant", "bee"]


def test_sigterm_leaves_no_unfinished_folder(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "build_models.py", "--weights", str(checkpoint), "--output", str(tmp_path / "models")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while not list(tmp_path.glob(".models.building-*")) and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


def test_arch_must_be_the_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds replknet_nano"):
        build(BuildOptions(arch="replknet_31b", weights=checkpoint, output=tmp_path / "models"))


def test_command_line_reads_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_arguments(["--format", "torchscript, onnx"]).formats == ("torchscript", "onnx")
