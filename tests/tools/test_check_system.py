"""One line for each system requirement that is missing, whichever Python runs it."""

import ast
import collections.abc
import ctypes
import importlib.util
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "check_system.py"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def load():
    spec = importlib.util.spec_from_file_location("check_system", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """compiler(name, script): an executable in the only folder of PATH. Until then no g++ is found."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def write(name, script):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def problems(compiler):
    """Return what is missing, with a compiler that is good enough."""
    compiler("g++", "exit 0")
    return lambda: list(load().missing_requirements())


def test_this_machine_has_all():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_line_says_one_line(compiler):
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ("widefield: g++ is missing (it builds the native libraries): sudo apt-get install g++\n")


def test_a_compiler_that_is_asked_for_cpp20(compiler, tmp_path):
    compiler("g++", f'echo "$@" > {tmp_path}/asked')
    assert load().compiler_problem() == ""
    assert (tmp_path / "asked").read_text() == "-std=c++20 -fsyntax-only -x c++ /dev/null\n"


def test_an_old_compiler(compiler):
    path = compiler("g++", "echo \"g++: error: unrecognized command line option '-std=c++20'\" >&2; echo more; exit 1")
    (line,) = load().missing_requirements()
    assert line == (
        f"{path} does not compile C++20 (g++: error: unrecognized command line option '-std=c++20'): "
        "sudo apt-get install g++-12, then name it: make CXX=g++-12"
    )


def test_a_compiler_that_fails_without_a_word(compiler):
    compiler("g++", "exit 4")
    assert "does not compile C++20 (exit status 4)" in load().compiler_problem()


def test_cxx_comes_before_gpp(compiler, monkeypatch):
    compiler("g++", "exit 1")
    monkeypatch.setenv("CXX", str(compiler("mine", "exit 0")))
    assert load().compiler_problem() == ""


def test_cxx_that_cannot_be_run(compiler, monkeypatch):
    compiler("g++", "exit 0")
    monkeypatch.setenv("CXX", "ccache g++")
    assert load().compiler_problem() == (
        "CXX is ccache g++, which cannot be run (No such file or directory): "
        "unset it or name one compiler: make CXX=g++"
    )


def test_no_shared_libpython(problems, monkeypatch):
    def no_library(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    (line,) = problems()
    assert line.startswith(f"libpython{PYTHON}.so.1.0 is missing")
    assert line.endswith(f": sudo apt-get install libpython{PYTHON}")


@pytest.mark.parametrize("folder", ["/opt/python/lib/", ""])
def test_libpython_lies_beside_python_or_where_the_loader_looks(folder, problems, monkeypatch):
    def load_library(name):
        if name != f"{folder}libpython{PYTHON}.so.1.0":
            raise OSError(name)

    monkeypatch.setattr(sysconfig, "get_config_var", {"LIBDIR": "/opt/python/lib"}.get)
    monkeypatch.setattr(ctypes, "CDLL", load_library)
    assert problems() == []


def test_no_venv_module(problems, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ensurepip" else real(name))
    assert problems() == [f"Python's venv module is missing: sudo apt-get install python{PYTHON}-venv"]


@pytest.mark.parametrize(("system", "machine"), [("linux", "aarch64"), ("darwin", "x86_64")])
def test_another_machine(system, machine, problems, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert problems() == [f"Widefield runs on Linux x86-64; this is {system} {machine}"]


@pytest.mark.parametrize("version", [(3, 10, 0), (3, 14, 9)])
def test_oldest_and_newest_python(version, problems, monkeypatch):
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    assert problems() == []


@pytest.mark.parametrize("version", [(3, 8, 10), (3, 9, 19), (3, 15, 0)])
def test_wrong_python(problems, monkeypatch, version):
    """Python 3.8's Iterator has no [], which an annotation may not trip over."""
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(collections.abc, "Iterator", SimpleNamespace())
    name = f"{version[0]}.{version[1]}"
    assert problems() == [f"Python {name}: 3.10 to 3.14 are supported; name one: make PYTHON=python3.11"]


def test_old_pythons_can_read_it():
    ast.parse(SCRIPT.read_text(), feature_version=(3, 6))
    assert "from __future__ import annotations" not in SCRIPT.read_text()  # a SyntaxError to Python 3.6
