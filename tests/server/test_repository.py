"""What the launcher reads of a repository, and its one line for each way in which one can be unfit."""

import errno
import hashlib
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from server import RepositoryError, checksums
from server.checksums import ChecksumError
from server.repository import EMBEDDED, read_repository, replaced, verify_newest


def write(root, name, text, *files):
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(text)
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def write_torchscript(path, code):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/code/__torch__.py", code)
        archive.writestr("model/data.pkl", b"")


def test_missing(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match=r"file is a file: name the folder that build_models\.py has"):
        read_repository(tmp_path / "file")
    with pytest.raises(RepositoryError, match=r"none does not exist: run build_models\.py"):
        read_repository(tmp_path / "none")


def test_empty(tmp_path):
    (tmp_path / "backbone").mkdir()
    with pytest.raises(RepositoryError, match=r"holds no model .*build_models\.py"):
        read_repository(tmp_path)


def test_the_folder_that_is_meant_is_named(tmp_path):
    write(tmp_path / "models", "backbone", "")
    write(tmp_path / "models", "softmax", "")
    for given in (tmp_path, tmp_path / "models" / "backbone"):
        with pytest.raises(RepositoryError, match=rf"{given} holds no model .*: did you mean {tmp_path}/models\?$"):
            read_repository(given)
    write(tmp_path / "others", "backbone", "")
    with pytest.raises(RepositoryError, match=r"holds no model .*: run build_models\.py$"):
        read_repository(tmp_path)


@pytest.mark.parametrize("file", [".", "backbone/config.pbtxt", "backbone/1/build.json", "backbone/1/model.pt"])
def test_what_this_user_may_not_read_is_named(tmp_path, monkeypatch, file):
    """Root, as whom these tests may run, may read all."""
    write_torchscript(write(tmp_path, "backbone", 'backend: "pytorch"') / "1/model.pt", "")
    (tmp_path / "backbone/1/build.json").write_text('{"files_sha256": {}}')
    refused = tmp_path / file

    def refuse(real):
        def read(path, *rest, **options):
            if path == refused:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *rest, **options)

        return read

    for holder, name in ((Path, "iterdir"), (Path, "read_text"), (zipfile, "ZipFile")):
        monkeypatch.setattr(holder, name, refuse(getattr(holder, name)))
    expected = rf"^{re.escape(str(refused))} cannot be read \(Permission denied\): fix that, or serve it as a user who"
    with pytest.raises(RepositoryError, match=expected):
        read_repository(tmp_path)


@pytest.mark.parametrize("name", ["lost+found", ".snapshot"])
def test_a_folder_that_is_no_model(tmp_path, name):
    """tritonserver would end with a fault of its own memory."""
    write_torchscript(write(tmp_path, "backbone", 'backend: "pytorch"') / "1/model.pt", "")
    (tmp_path / "README").touch()
    assert read_repository(tmp_path).models == ("backbone",)
    (tmp_path / name).mkdir()
    for read in (read_repository, verify_newest):
        with pytest.raises(RepositoryError, match=rf"{re.escape(name)} is not a model .*: remove it, or serve"):
            read(tmp_path)


def test_versions_without_checksums_are_told(tmp_path):
    for name in ("backbone", "softmax"):
        write_torchscript(write(tmp_path, name, 'backend: "pytorch"') / "1/model.pt", "")
    line = "backbone/1, softmax/1: served unchecked, without build.json; build_models.py writes it"
    assert read_repository(tmp_path).unchecked == line
    for name in ("backbone", "softmax"):
        (tmp_path / name / "1/build.json").write_text('{"files_sha256": {}}')
    assert read_repository(tmp_path).unchecked == ""


@pytest.mark.parametrize("name", ["010", "\u00b2", "\u0661\u0662"])
def test_the_newest_is_the_one_that_tritonserver_serves(tmp_path, name):
    """It passes over a folder whose name begins with 0 or is no number, and over a file."""
    write(tmp_path, "backbone", 'backend: "pytorch"', "1/model.pt", "9/model.pt", f"{name}/README", "11")
    (tmp_path / "backbone/9/build.json").write_text('{"files_sha256": {"model.pt": "0"}}')
    with pytest.raises(RepositoryError, match=r"9/model\.pt is not what was built"):
        verify_newest(tmp_path)


def test_no_version(tmp_path):
    write(tmp_path, "backbone", 'backend: "pytorch"', "labels.txt", "draft/model.pt")
    with pytest.raises(RepositoryError, match=r"model backbone .* has no version folder"):
        read_repository(tmp_path)


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ('backend: "pytorch"', "model.pt"),
        ('  backend : "pytorch"\n', "model.pt"),
        ('platform: "pytorch_libtorch"', "model.pt"),
        ("backend: 'python'", "model.py"),
        ("name: 'it is a \"backend: ' backend: 'pytorch' default_model_filename: 'other.bin'", "other.bin"),
        ('backend: "python"', "model.py"),
        ('backend: "onnxruntime"', "model.onnx"),
        ('platform: "onnxruntime_onnx"', "model.onnx"),
        ('backend: "pytorch"\ndefault_model_filename: "other.bin"', "other.bin"),
        ('name: "backbone" backend: "pytorch" default_model_filename: "other.bin" max_batch_size: 8', "other.bin"),
        (
            '# backend: "onnxruntime"\nname: "backend: \'onnx\'"\nmy_backend: "onnxruntime"\nbackend: "python"',
            "model.py",
        ),
    ],
)
def test_config_without_weights(tmp_path, text, file):
    write(tmp_path, "backbone", text, "1/README", f"9/{file}", "10/README")
    with pytest.raises(
        RepositoryError, match=rf"model backbone has no 10/{file}, it is not built: run build_models\.py"
    ):
        read_repository(tmp_path)


def test_what_is_read(tmp_path):
    write(tmp_path, "preprocess", 'backend: "python"', "1/model.py")
    write_torchscript(write(tmp_path, "backbone", 'backend: "pytorch"') / "2" / "model.pt", b"torch.ops.aten.relu")
    write(tmp_path, "classifier", 'platform: "ensemble"', "1/.keep")
    write(tmp_path, "other", 'backend: "identity"', "1/.keep")
    repository = read_repository(tmp_path)
    assert repository.models == ("backbone", "classifier", "other", "preprocess")
    assert repository.has_canary
    assert repository.backends == {"backbone": "pytorch", "other": "identity", "preprocess": "python"}
    assert repository.first_of("pytorch") == "backbone"
    assert repository.needs_library is None
    assert not read_repository_without(tmp_path, "classifier").has_canary


def test_platforms_are_backends(tmp_path):
    write(tmp_path, "a", 'platform: "onnxruntime_onnx"', "1/model.onnx")
    write(tmp_path, "b", 'platform: "tensorrt_plan"', "1/model.plan")
    write_torchscript(write(tmp_path, "c", 'platform: "pytorch_libtorch"') / "1" / "model.pt", b"torch.ops.aten.relu")
    repository = read_repository(tmp_path)
    assert repository.backends == {"a": "onnxruntime", "b": "tensorrt", "c": "pytorch"}
    assert repository.first_of("pytorch") == "c"


@pytest.mark.parametrize("file", ["libtriton_mine.so", "1/libtriton_mine.so"])
def test_a_model_that_brings_its_backend(tmp_path, file):
    write(tmp_path, "backbone", 'backend: "mine"', "1/.keep", file)
    repository = read_repository(tmp_path)
    assert repository.backends == {}
    assert repository.first_of("pytorch") is None


def read_repository_without(root, name):
    shutil.rmtree(root / name)
    return read_repository(root)


def test_a_model_with_our_operator(tmp_path):
    code = b"  _0 = ops.widefield.depthwise_conv2d(x, weight, bias)"
    write_torchscript(write(tmp_path, "backbone", 'backend: "pytorch"') / "1" / "model.pt", code)
    assert read_repository(tmp_path).needs_library == "backbone"
    write_torchscript(
        write(tmp_path, "a", "backend: 'pytorch' default_model_filename: 'net.ts'") / "1" / "net.ts", code
    )
    assert read_repository(tmp_path).needs_library == "a"


def test_a_model_that_resizes(tmp_path):
    write(tmp_path, "tokens", 'backend: "python"', "1/model.py")
    assert not read_repository(tmp_path).resizes
    write(tmp_path, "preprocess", 'backend: "python"', "1/model.py", "1/pillow_resize.py")
    assert read_repository(tmp_path).resizes


def test_damaged_weights(tmp_path):
    folder = write(tmp_path, "backbone", 'backend: "pytorch"', "1/model.pt")
    (folder / "1" / "model.pt").write_bytes(b"half a zip")
    with pytest.raises(RepositoryError, match=r"model\.pt is damaged"):
        read_repository(tmp_path)


def test_a_checkpoint_in_the_place_of_torchscript(tmp_path):
    """PyTorch would say that it is likely to be corrupted."""
    weights = write(tmp_path, "backbone", 'backend: "pytorch"', "1/model.pt") / "1" / "model.pt"
    with zipfile.ZipFile(weights, "w") as archive:  # as torch.save has it
        archive.writestr("archive/data.pkl", b"")
        archive.writestr("archive/data/0", b"")
    with pytest.raises(RepositoryError, match=rf"^{weights} is what torch\.save writes, not TorchScript: run build_"):
        read_repository(tmp_path)


@pytest.mark.parametrize("harm", ["cut off", "changed", "gone", "{}", "[]", '{"files_sha256": []}', "{"])
def test_what_was_built_is_verified(repository, tmp_path, harm):
    root = shutil.copytree(repository, tmp_path / "models")
    version = root / "backbone" / "1"
    weights = version / "model.pt"
    record = {"files_sha256": {"model.pt": hashlib.sha256(weights.read_bytes()).hexdigest()}}
    (version / "build.json").write_text(json.dumps(record))
    read_repository(root)
    data = weights.read_bytes()
    if harm == "cut off":
        weights.write_bytes(data[:-1])
    elif harm == "changed":
        weights.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif harm == "gone":
        record["files_sha256"]["model.onnx"] = "0" * 64
        (version / "build.json").write_text(json.dumps(record))
    else:
        (version / "build.json").write_text(harm)
    with pytest.raises(RepositoryError, match="build it again"):
        read_repository(root)


def test_the_remedy_fits_what_is_there(repository, tmp_path):
    root = shutil.copytree(repository, tmp_path / "models")
    version = root / "backbone" / "1"
    record = version / "build.json"
    record.write_text(json.dumps({"files_sha256": {"model.pt": "0"}}))
    with pytest.raises(RepositoryError, match=f": build it again; if the change is intended, remove {record}$"):
        read_repository(root)
    version = version.rename(root / "backbone" / "2")
    (root / "backbone" / "1").mkdir()
    with pytest.raises(RepositoryError, match=f"again, or remove {version} to go back to the version before; if"):
        read_repository(root)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO])
def test_what_cannot_be_read_is_not_told_to_be_built_again(repository, tmp_path, monkeypatch, code):
    root = shutil.copytree(repository, tmp_path / "models")
    version = root / "backbone" / "1"
    (version / "build.json").write_text(json.dumps({"files_sha256": {"model.pt": "0"}}))

    def refused(file):  # what tests run as may be root, whom no permission stops
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(checksums, "_sha256", refused)
    remedy = "fix that, or serve it as a user who may read it"
    with pytest.raises(RepositoryError) as error:
        read_repository(root)
    assert str(error.value) == f"{version / 'model.pt'} cannot be read ({os.strerror(code)}): {remedy}"
    monkeypatch.setattr(checksums, "check_folders", refused)
    with pytest.raises(ChecksumError) as error:
        checksums.compare_newest(root)
    assert str(error.value) == f"{root} cannot be read ([Errno {code}] {os.strerror(code)}): {remedy}"


@pytest.mark.parametrize("model", ["preprocess", "backbone", "softmax"])
def test_the_configs_of_the_checkout_belong_together(model):
    """A build that changes them is committed with both, or every newcomer's checkout is changed by `make demo`."""
    folder = Path(__file__).parents[2] / "model_repository" / model
    assert (folder / EMBEDDED).read_text().startswith(replaced((folder / "config.pbtxt").read_bytes()))
    text = text_format.Parse((folder / EMBEDDED).read_text(), model_config_pb2.ModelConfig())
    assert list(text.dynamic_batching.preferred_batch_size) == {"preprocess": [4], "backbone": [2]}.get(model, [])


LABELLED = """output [
  { name: "scores" data_type: TYPE_FP32 dims: [ 7 ] reshape { shape: [7] } },
  { name: "p" data_type: TYPE_FP32 dims: %s # dims: 9
    label_filename: "labels.txt" }
]
"""


@pytest.mark.parametrize("dims", ["3", "[3]", "[3, 1, 1]", "[-1]"])
@pytest.mark.parametrize("content", [b"a\nb\nc", b"a\nb\nc\n\n", "ä\nb\u2028\r\nc\n".encode()])
def test_labels_that_are_served_as_they_are(tmp_path, dims, content):
    write(tmp_path, "classifier", LABELLED % dims, "1/.gitkeep")
    assert read_repository(tmp_path).models == ("classifier",)  # what is missing tritonserver names
    (tmp_path / "classifier/labels.txt").write_bytes(content)
    assert read_repository(tmp_path).models == ("classifier",)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"a\r\nb\r\nc\r\n", r"has Windows line ends (\r\n), and each label would end in \r"),
        (b"\xef\xbb\xbfa\nb\nc\n", "begins with a byte order mark, which the first label would hold"),
        (b"a\nb\n\xe4\n", "is not UTF-8 (byte 4)"),
        (b"a\nb\n", "has 2 labels for 3 classes"),
        (b"name\na\nb\nc\n", "has 4 labels for 3 classes"),
        (b"", "has 0 labels for 3 classes"),
    ],
)
def test_labels_that_would_be_served_otherwise(tmp_path, content, fault):
    model = write(tmp_path, "classifier", LABELLED % 3, "1/.gitkeep")
    (model / "labels.txt").write_bytes(content)
    expected = f"{model}/labels.txt {fault}: write one label a line in UTF-8, or run build_models.py"
    with pytest.raises(RepositoryError, match=f"^{re.escape(expected)}$"):
        read_repository(tmp_path)


@pytest.mark.parametrize("reshape", ["reshape { shape: [3, 1] }", "reshape: {\n  shape: [ ] # none\n}"])
def test_labels_of_an_output_of_another_shape(tmp_path, reshape):
    model = write(tmp_path, "classifier", LABELLED % f"3 {reshape}", "1/.gitkeep")
    (model / "labels.txt").write_bytes(b"a\nb\n")
    with pytest.raises(RepositoryError, match="has 2 labels for 3 classes"):
        read_repository(tmp_path)
