"""One clear line before the start for each thing that tritonserver would say late, or not at all."""

import contextlib
import importlib.metadata
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from server import InstallationError, OptionError
from server.locate import Installation, find_tritonserver
from server.preflight import (
    check_backends,
    check_log_file,
    check_numpy,
    check_python_on_path,
    check_stub_libraries,
)


@pytest.mark.parametrize("version", ["2.0.0", "2.4.1", "10.0"])
def test_numpy_2(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(InstallationError, match=rf'numpy {version} .* model tokens: pip install "numpy<2"'):
        check_numpy("tokens")


def test_numpy_1(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.26.4")
    check_numpy("tokens")


def test_numpy_missing(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(InstallationError, match="numpy is missing"):
        check_numpy("tokens")


@pytest.fixture
def loader_prints(monkeypatch):
    """loader_prints(text): what the dynamic loader says of the stub's libraries."""

    def build(text):
        monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: SimpleNamespace(stdout=text))

    return build


def test_another_library_missing(loader_prints):
    loader_prints("\tlibfoo.so => not found\n\tlibbar.so => not found\n")
    with pytest.raises(InstallationError, match=r"are missing: libfoo\.so, libbar\.so"):
        check_stub_libraries(Path("stub"), {})


def test_all_libraries_found(loader_prints):
    loader_prints("\tlibc.so.6 => /lib/libc.so.6 (0x1)\n")
    check_stub_libraries(Path("stub"), {})


def test_the_real_stub_is_asked_and_not_run(monkeypatch):
    """Under the loader's tracing it lists its libraries and does nothing: run, it would print its usage."""
    asked = []
    real = subprocess.run

    def run(*arguments, **options):
        asked.append(real(*arguments, **options))
        return asked[-1]

    monkeypatch.setattr(subprocess, "run", run)
    with contextlib.suppress(InstallationError):  # its libpython may need the launcher's search path
        check_stub_libraries(find_tritonserver().stub("3.12"), dict(os.environ))
    assert asked[0].returncode == 0
    assert "libpython3.12" in asked[0].stdout
    assert "libc.so.6 =>" in asked[0].stdout


def test_python3_on_path(tmp_path):
    with pytest.raises(InstallationError, match="has no python3"):
        check_python_on_path(tmp_path)
    (tmp_path / "python3").touch(0o755)
    check_python_on_path(tmp_path)


@pytest.mark.parametrize("name", ["file/log", "file/a/log", "", "x" * 300])
def test_log_file_that_cannot_be_written(tmp_path, name):
    (tmp_path / "file").touch()
    path = re.escape(str(tmp_path / name))
    with pytest.raises(OptionError, match=rf"log file {path} cannot be written \(.*\): name another with --log-file"):
        check_log_file(tmp_path / name)


def test_log_file_in_a_new_folder(tmp_path):
    path = tmp_path / "new" / "log"
    check_log_file(path)
    path.write_text("kept")
    check_log_file(path)
    assert path.read_text() == "kept"


@pytest.fixture
def embedded(tmp_path):
    (tmp_path / "python_backend_stubs").mkdir()
    return Installation(tmp_path / "bin" / "tritonserver")


def test_a_backend_that_the_embedded_server_lacks(embedded):
    with pytest.raises(InstallationError) as caught:
        check_backends({"preprocess": "python", "backbone": "onnxruntime", "softmax": "pytorch"}, embedded)
    assert str(caught.value) == (
        "model backbone needs the onnxruntime backend, which the embedded tritonserver does not have "
        "(it has python, pytorch, python_in_process): build it with build_models.py --format torchscript, "
        "or serve it with NVIDIA's container (deploy/)"
    )
    with pytest.raises(InstallationError, match=r"tensorrt backend, .* not have .*: serve it with NVIDIA's container"):
        check_backends({"backbone": "tensorrt"}, embedded)
    with pytest.raises(InstallationError, match=r"needs the pytroch backend, .*\): did you mean pytorch\?$"):
        check_backends({"backbone": "pytroch"}, embedded)


def test_backends_that_are_there(embedded, tmp_path):
    check_backends({"preprocess": "python", "softmax": "pytorch"}, embedded)
    check_backends({"backbone": "mine"}, embedded, ["--backend-directory=/mine"])
    check_backends({"backbone": "onnxruntime"}, Installation(tmp_path / "opt" / "bin" / "tritonserver"))


def test_named_tritonserver(monkeypatch, tmp_path):
    named = tmp_path / "opt" / "bin" / "tritonserver"
    named.parent.mkdir(parents=True)
    named.touch(0o755)
    monkeypatch.setenv("TRITONSERVER", str(named))
    found = find_tritonserver()
    assert found.executable == named
    assert not found.embedded
    assert found.native_libtorch is None
    backend = tmp_path / "opt" / "backends" / "pytorch"
    backend.mkdir(parents=True)
    (backend / "libtriton_pytorch.so").touch()
    assert found.native_libtorch == backend


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.touch(0o644), Path.mkdir])
def test_named_tritonserver_cannot_be_run(monkeypatch, tmp_path, make):
    make(tmp_path / "none")
    monkeypatch.setenv("TRITONSERVER", str(tmp_path / "none"))
    with pytest.raises(InstallationError, match=r"none, which is not an executable file.*pip install nvidia-pytriton"):
        find_tritonserver()


def test_tritonserver_on_path_comes_before_the_wheel(monkeypatch, tmp_path):
    monkeypatch.delenv("TRITONSERVER", raising=False)
    (tmp_path / "tritonserver").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_tritonserver().executable == tmp_path / "tritonserver"
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_tritonserver().embedded  # the wheel's


def test_no_tritonserver(monkeypatch):
    monkeypatch.delenv("TRITONSERVER", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InstallationError, match="tritonserver is not found: install"):
        find_tritonserver()


def test_no_stub_for_this_python(tmp_path):
    (tmp_path / "python_backend_stubs" / "3.10").mkdir(parents=True)
    assert Installation(tmp_path / "bin" / "tritonserver").stub("3.14") is None
