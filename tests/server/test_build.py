"""Why the embedded server's PyTorch backend cannot be built, in one line."""

import importlib.util
import inspect
import os
import re
import time
from dataclasses import replace
from importlib.machinery import ModuleSpec

import pytest

from kernels.native import build as kernels_build
from server.backends import build


@pytest.fixture
def backend(tmp_path):
    """A backend that was built for something else."""
    path = tmp_path / "lib" / "libtriton_pytorch.so"
    path.parent.mkdir()
    path.write_text("old")
    path.with_suffix(".stamp").write_text("old")
    return replace(build.PYTORCH, output=path)


@pytest.mark.parametrize("name", ["torch_folder", "run_all", "start", "end"])
def test_both_builds_run_the_compiler_alike(name):
    """Neither module may import the other."""
    assert inspect.getsource(getattr(build, name)) == inspect.getsource(getattr(kernels_build, name))


def left_behind():
    spec = ModuleSpec("torch", None, is_package=True)  # a folder that pip did not empty
    spec.submodule_search_locations = ["/nowhere/torch"]
    return spec


@pytest.mark.parametrize("spec", [None, left_behind()])
def test_no_pytorch(monkeypatch, backend, spec):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    for function in (build.is_current, build.build):
        with pytest.raises(build.BuildError, match=r"^PyTorch is not installed: pip install 'torch>=2\.11'$"):
            function(backend)


@pytest.mark.parametrize("library", build.LIBRARIES.values(), ids=build.LIBRARIES)
def test_all_that_a_library_is_made_of_is_named(library):
    """A file that is not named could change and leave an old build in place."""
    files = [path for path in library.folder.iterdir() if path.suffix in (".cpp", ".h")]
    assert {path.name for path in files if path.suffix == ".cpp"} == set(library.sources)
    included = {name for path in files for name in re.findall(r'^#include "(.*)"', path.read_text(), re.MULTILINE)}
    assert included <= set(library.headers)
    assert {path.name for path in files if path.suffix == ".h"} <= set(library.headers)


def test_a_changed_header_is_another_build(tmp_path):
    library = replace(build.RESIZE, folder=tmp_path, sources=("a.cpp",), headers=("a.h",))
    found = set()
    for changed in ("a.cpp", "a.h", "a.cpp"):
        for name in ("a.cpp", "a.h"):
            with (tmp_path / name).open("a") as file:
                file.write("//" * (name == changed))
        found.add(build.fingerprint(library))
    assert len(found) == 3


def test_a_linked_environment_is_the_same_one(monkeypatch, tmp_path):
    found = build.fingerprint(build.PYTORCH)
    (tmp_path / "torch").symlink_to(build.torch_folder())
    monkeypatch.setattr(build, "torch_folder", lambda: tmp_path / "torch")
    assert build.fingerprint(build.PYTORCH) == found


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        (None, "^g\\+\\+ is missing: sudo apt-get install g\\+\\+$"),
        ("ccache g++", r"^compiler ccache g\+\+ cannot be run \(No such file or directory\): name one in CXX$"),
    ],
)
def test_no_compiler(monkeypatch, backend, compiler, message):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    if compiler:
        monkeypatch.setenv("CXX", compiler)
    with pytest.raises(build.BuildError, match=message):
        build.build(backend)
    assert sorted(os.listdir(backend.output.parent)) == ["libtriton_pytorch.so", "libtriton_pytorch.stamp"]
    assert backend.output.read_text() == "old"


def test_no_compiler_runs_on_after_one_failed(backend, tmp_path, monkeypatch):
    compiler = tmp_path / "g++"
    compiler.write_text(
        "#!/bin/sh\n"
        f'case "$*" in *backend.cpp*) while [ ! -e {tmp_path}/started ]; do sleep 0.01; done; exit 1;; esac\n'
        f"touch {tmp_path}/started; (sleep 1; touch {tmp_path}/ran-on) & wait\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(build.BuildError, match=r"backend\.cpp"):
        build.build(backend)
    time.sleep(1.2)
    assert not (tmp_path / "ran-on").exists()


def test_a_library_without_pytorch(monkeypatch, tmp_path, capsys):
    """Built, found up to date, built again when what it is made of changes."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    library = replace(build.RESIZE, output=tmp_path / "lib" / build.RESIZE.output.name)
    assert not build.is_current(library)
    assert build.build(library).startswith("built libwidefield_resize.so in")
    assert build.build(library) == "libwidefield_resize.so is up to date"
    library.output.unlink()
    assert not build.is_current(library)
    changed = replace(library, flags=(*library.flags, "-DCHANGED"))
    assert not build.is_current(changed)
    assert build.build(changed).startswith("built")


@pytest.mark.parametrize(("option", "status"), [("--help", 0), ("--nonsense", 2), ("resise", 2)])
def test_an_option_is_no_library(option, status, monkeypatch, capsys):
    monkeypatch.setattr(build, "build", lambda library: pytest.fail(f"{library} was built"))
    with pytest.raises(SystemExit) as ended:
        build.main([option])
    assert ended.value.code == status
    said = capsys.readouterr()
    assert all(name in said.out for name in build.LIBRARIES) if status == 0 else option in said.err
