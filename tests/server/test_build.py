"""Why the embedded server's PyTorch backend cannot be built, in one line."""

import importlib.util
import os
from importlib.machinery import ModuleSpec

import pytest

from server.backends.pytorch import build


@pytest.fixture
def output(tmp_path):
    """A backend that was built for something else."""
    path = tmp_path / "lib" / "libtriton_pytorch.so"
    path.parent.mkdir()
    path.write_text("old")
    path.with_suffix(".stamp").write_text("old")
    return path


def left_behind():
    spec = ModuleSpec("torch", None, is_package=True)  # a folder that pip did not empty
    spec.submodule_search_locations = ["/nowhere/torch"]
    return spec


@pytest.mark.parametrize("spec", [None, left_behind()])
def test_no_pytorch(monkeypatch, output, spec):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    for function in (build.is_current, build.build):
        with pytest.raises(build.BuildError, match=r"^PyTorch is not installed: pip install 'torch>=2\.11'$"):
            function(output)


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        (None, "^g\\+\\+ is missing: sudo apt-get install g\\+\\+$"),
        ("ccache g++", r"^compiler ccache g\+\+ cannot be run \(No such file or directory\): name one in CXX$"),
    ],
)
def test_no_compiler(monkeypatch, output, compiler, message):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    if compiler:
        monkeypatch.setenv("CXX", compiler)
    with pytest.raises(build.BuildError, match=message):
        build.build(output)
    assert sorted(os.listdir(output.parent)) == ["libtriton_pytorch.so", "libtriton_pytorch.stamp"]
    assert output.read_text() == "old"
