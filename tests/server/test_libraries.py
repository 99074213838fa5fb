"""Which native library and which resize library a server is started with."""

from pathlib import Path

import pytest

from server import InstallationError, OptionError
from server.__main__ import main
from server.backends import build as backends
from server.libraries import find_fixes, find_library, find_resize
from server.repository import Repository

PLAIN = Repository(Path("/none"), (), None, {})
NEEDS_IT = Repository(Path("/none"), ("backbone",), "backbone", {"backbone": "pytorch"})


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LIBRARY", "RESIZE", "FIXES"):
        monkeypatch.delenv(f"WIDEFIELD_{name}", raising=False)


@pytest.fixture
def library(tmp_path: Path) -> Path:
    path = tmp_path / "lib.so"
    path.write_bytes(b"\x7fELF\x02")
    return path


def test_a_named_library(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEFIELD_LIBRARY", str(library))
    assert find_library(None, PLAIN) == library
    monkeypatch.setenv("WIDEFIELD_LIBRARY", "/none")
    assert find_library(library, PLAIN) == library
    monkeypatch.chdir(library.parent)
    assert find_library("lib.so", NEEDS_IT) == library


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none.so", r"native library \S+none\.so cannot be read \(No such file or directory\): run python kernels"),
        ("", r"cannot be read \(Is a directory\)"),
        ("notes.txt", r"notes\.txt is not a shared library: run python kernels/native/build\.py"),
    ],
)
def test_a_named_library_that_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    (tmp_path / "notes.txt").write_text("no ELF")
    with pytest.raises(OptionError, match=expected):
        find_library(tmp_path / name, PLAIN)
    monkeypatch.setenv("WIDEFIELD_LIBRARY", str(tmp_path / name))
    with pytest.raises(OptionError, match=expected):
        find_library(None, PLAIN)


def test_a_named_library_that_is_none_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "model" / "1").mkdir(parents=True)
    (tmp_path / "model" / "config.pbtxt").touch()
    ports = [f"--{service}-port=0" for service in ("http", "grpc", "metrics")]
    assert main(["--model-repository", str(tmp_path), *ports, "--library", "/none.so"]) == 2
    assert "server: error: native library /none.so cannot be read" in capsys.readouterr().err


def test_the_library_that_is_built(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.libraries.DEFAULT_LIBRARY", library)
    assert find_library(None, PLAIN) == find_library(None, NEEDS_IT) == library
    library.unlink()
    assert find_library(None, PLAIN) is None
    with pytest.raises(InstallationError, match=r"model backbone needs lib\.so, not built yet: run"):
        find_library(None, NEEDS_IT)


def test_find_resize(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEFIELD_RESIZE", str(library))
    assert find_resize() == library
    monkeypatch.setenv("WIDEFIELD_RESIZE", "/none")
    with pytest.raises(OptionError, match=r"WIDEFIELD_RESIZE /none cannot be read .*: unset it, or run"):
        find_resize()
    monkeypatch.delenv("WIDEFIELD_RESIZE")
    monkeypatch.setattr(backends, "is_current", lambda library: library is backends.RESIZE)
    assert find_resize() == backends.RESIZE.output
    monkeypatch.setattr(backends, "is_current", lambda library: False)
    assert find_resize() is None


def test_find_fixes(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEFIELD_FIXES", str(library))
    assert find_fixes() == library
    monkeypatch.setenv("WIDEFIELD_FIXES", "/none")
    with pytest.raises(OptionError, match=r"WIDEFIELD_FIXES /none cannot be read .*: unset it, or run .* fixes"):
        find_fixes()
    monkeypatch.delenv("WIDEFIELD_FIXES")
    monkeypatch.setattr(backends, "is_current", lambda library: library is backends.FIXES)
    assert find_fixes() == backends.FIXES.output
    monkeypatch.setenv("WIDEFIELD_FIXES", "")
    assert find_fixes() is None, "turned off"
    monkeypatch.delenv("WIDEFIELD_FIXES")
    monkeypatch.setattr(backends, "is_current", lambda library: False)
    assert find_fixes() is None
