"""build_models.py writes atomically: versions are numbered, and a failed build changes nothing."""

import errno
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from built_repository import digest

import export.build as build_module
from export.build import BuildOptions, build
from export.existing import RepositoryError
from export.parity import ParityError
from models import reparameterize
from models.errors import SettingsError
from server.errors import ReleaseError
from server.versions import Versions


def test_versions_are_numbered_and_the_newest_three_stay(checkpoint: Path, tmp_path: Path) -> None:
    options = BuildOptions(weights=checkpoint, output=tmp_path / "models", threads=1)
    for _ in range(4):
        build(options)
    assert sorted(p.name for p in (tmp_path / "models/backbone").glob("[0-9]*")) == ["2", "3", "4"]
    for taken in (1, 3, 4):  # 1 is gone, and would be the first to go again
        with pytest.raises(SettingsError, match=f"--version {taken}: .* choose 5 or more"):
            build(replace(options, version=taken))
    (tmp_path / "models/backbone/5.bak").mkdir()
    summary = build(replace(options, image_size=96))  # earlier versions cannot serve another input size
    assert "removed version 2, 3, 4: input UINT8 pixels[96, 96, 3] (was UINT8 pixels[64, 64, 3])" in summary
    assert {p.name for p in (tmp_path / "models/backbone").iterdir()} == {"5", "5.bak", "config.pbtxt", "configs"}
    with pytest.raises(SettingsError, match=r"--version 4: .* had, version 5: choose 6 or more"):
        build(replace(options, image_size=96, version=4))


def test_the_number_of_a_withdrawn_version_is_not_used_again(checkpoint: Path, tmp_path: Path) -> None:
    options = BuildOptions(weights=checkpoint, output=tmp_path / "models", threads=1)
    (tmp_path / "models/backbone/.9.withdrawn").mkdir(parents=True)
    (tmp_path / "models/backbone/config.pbtxt").touch()
    with pytest.raises(SettingsError, match=r"--version 9: .* choose 10 or more"):
        build(replace(options, version=9))
    assert ", version 10, " in build(options)


def test_what_stands_in_the_way_is_told_before_the_weights_are_loaded(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "load_model", lambda options: pytest.fail("the weights were loaded"))
    options = BuildOptions(weights=checkpoint, output=tmp_path / "models", threads=1)
    (tmp_path / "models/backbone/3").mkdir(parents=True)
    (tmp_path / "models/backbone/config.pbtxt").touch()
    with pytest.raises(SettingsError, match=r"--version 3: .*backbone has, or had, version 3: choose 4 or more"):
        build(replace(options, version=3))
    with pytest.raises(SettingsError, match=r"config\.pbtxt is a file: --output .* names a folder"):
        build(replace(options, output=tmp_path / "models/backbone/config.pbtxt"))


def test_a_folder_that_is_no_repository_is_not_written_into(checkpoint: Path, tmp_path: Path) -> None:
    options = BuildOptions(weights=checkpoint, output=tmp_path / "docs", threads=1)
    (tmp_path / "docs/img").mkdir(parents=True)
    for name in (".gitignore", "0.md", "1.md", "2.md", "3.md", "4.md"):
        (tmp_path / "docs" / name).touch()
    before = digest(tmp_path)
    with pytest.raises(RepositoryError, match=r"docs is not a model repository, it holds 0\.md, .*4\.md, \.\.\.: give"):
        build(options)
    for below in ("docs/0.md", "docs/0.md/a/b"):
        with pytest.raises(SettingsError, match=rf"docs/0\.md is a file: --output .*{below} names a folder"):
            build(replace(options, output=tmp_path / below))
    assert digest(tmp_path) == before
    (tmp_path / "docs/theirs/1").mkdir(parents=True)
    for name in ("theirs/config.pbtxt", "theirs/1/model.onnx"):
        (tmp_path / "docs" / name).touch()
    with pytest.raises(RepositoryError, match=r"docs is not a model repository, it holds img: give"):
        build(options)
    (tmp_path / "docs/img").rmdir()
    build(options)  # a repository of somebody else's models, with what they say of them
    (tmp_path / "docs/img").mkdir()
    assert ", version 2, " in build(options), "what lies in one of ours is its owner's"
    assert {path.name for path in (tmp_path / "docs").iterdir()} >= {
        "theirs",
        ".gitignore",
        "0.md",
        "img",
        "classifier",
    }


def test_versions_that_want_other_pixels_do_not_stay(checkpoint: Path, tmp_path: Path) -> None:
    options = BuildOptions(weights=checkpoint, output=tmp_path / "models", threads=1)
    build(options)
    summary = build(replace(options, crop_pct=1.0))  # a rollback to version 1 would give it this one's pixels
    assert "; removed version 1: resize_size 64 (was" in summary
    assert "; removed version 2: crop_mode squash (was center), " in build(replace(options, crop_mode="squash"))


@pytest.mark.parametrize(
    ("step", "part", "formats"),
    [
        ("reparameterize", "the re-parameterised model", ("torchscript",)),
        ("load_torchscript", "TorchScript", ("torchscript",)),
        ("_OnnxBackbone", "ONNX Runtime", ("onnx",)),
    ],
)
def test_failed_build_leaves_the_repository(
    step: str, part: str, formats: tuple[str, ...], repository: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each format is compared as loaded from its file."""
    before = digest(repository)

    def wrong(model: torch.nn.Module) -> torch.nn.Module:
        deploy = reparameterize(model)
        with torch.no_grad():
            next(deploy.parameters()).add_(0.1)
        return deploy

    def zeros(_: Path) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda pixels: torch.zeros(len(pixels), 5)

    monkeypatch.setattr(build_module, step, wrong if step == "reparameterize" else zeros)
    with pytest.raises(ParityError, match=f"^{part} differs from .* left as it was"):
        build(BuildOptions(weights=checkpoint, output=repository, formats=formats))
    assert digest(repository) == before
    assert not [p for p in repository.parent.iterdir() if p != repository]


def test_one_build_release_or_rollback_at_a_time(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is refused, and the version of the first is there; likewise beside a release."""
    options = BuildOptions(weights=checkpoint, output=tmp_path / "models", threads=1)
    build(options)
    trace, refused = build_module.trace_backbone, []

    def meanwhile(*arguments: object) -> object:
        monkeypatch.setattr(build_module, "trace_backbone", trace)
        with pytest.raises(RuntimeError, match=r"another build, release or rollback of .*/backbone is under way"):
            build(options)
        with pytest.raises(ReleaseError, match="another build"), Versions(options.output).locked():
            pass
        refused.append(True)
        return trace(*arguments)

    monkeypatch.setattr(build_module, "trace_backbone", meanwhile)
    assert ", version 2, " in build(options)
    assert refused
    before = digest(tmp_path)
    with Versions(options.output).locked(), pytest.raises(RuntimeError, match="another build, release or rollback"):
        build(options)
    assert digest(tmp_path) == before
    assert ", version 3, " in build(options)


@pytest.mark.parametrize("there", [False, True], ids=["no folder", "a folder without a backbone"])
def test_the_first_of_two_first_builds_stays(
    there: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = BuildOptions(weights=checkpoint, output=tmp_path / "models", threads=1)
    if there:
        options.output.mkdir()
    trace, before = build_module.trace_backbone, {}

    def meanwhile(*arguments: object) -> object:
        monkeypatch.setattr(build_module, "trace_backbone", trace)
        build(options)
        before.update(digest(options.output))
        return trace(*arguments)

    monkeypatch.setattr(build_module, "trace_backbone", meanwhile)
    with pytest.raises(RuntimeError, match=r"another build wrote .*/models in the meantime: build again"):
        build(options)
    assert digest(tmp_path) == {f"models/{name}": value for name, value in before.items()} != {}


def test_a_build_never_writes_through_the_files_in_use(checkpoint: Path, tmp_path: Path) -> None:
    """The staging folder holds hard links: a server that has the old repository open must not see it change."""
    options = BuildOptions(weights=checkpoint, output=tmp_path / "models", threads=1)
    build(options)
    softmax = (tmp_path / "models/softmax/1/model.pt").open("rb")
    labels = (tmp_path / "models/classifier/labels.txt").open("rb")
    changed = tmp_path / "labels.txt"
    changed.write_text("a\nb\nc\nd\ne\n")
    bytecode = tmp_path / "models/preprocess/1/__pycache__"  # a server's that has run
    bytecode.mkdir()
    before = softmax.read()
    build(replace(options, labels=changed))
    softmax.seek(0)
    assert softmax.read() == before
    assert labels.read().startswith(b"ant")
    assert not bytecode.exists()


def test_sigterm_leaves_no_unfinished_folder(checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "build_models.py", "--weights", str(checkpoint), "--output", str(tmp_path / "models")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob(".models.building-*")) and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert said.splitlines()[-1] == "build_models: stopped, the repository is as it was"
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    """Here files may have 100 KB at most: LibTorch's own writer would abort the process and leave its file."""
    command = [sys.executable, "build_models.py", "--weights", str(checkpoint), "--output", str(tmp_path / "models")]
    limit = f"ulimit -f 100; exec {shlex.join(command)}"
    done = subprocess.run(["bash", "-c", limit], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"build_models: {tmp_path}/models cannot be written (")
    assert said.endswith("File too large): make room, or name another --output")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_a_build_cannot_read_is_not_told_of_as_the_disk(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/libwidefield.so")

    monkeypatch.setattr(build_module, "trace_backbone", unreadable)
    with pytest.raises(PermissionError, match=r"^\[Errno 13\] Permission denied: '/elsewhere/libwidefield.so'$"):
        build(BuildOptions(weights=checkpoint, output=tmp_path / "models", threads=1))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_hard_links_has_its_files_copied(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    options = BuildOptions(weights=checkpoint, output=tmp_path / "models", threads=1)
    build(options)
    before = digest(tmp_path / "models/backbone/1")
    monkeypatch.setattr(os, "link", no_links)
    assert ", version 2, " in build(options)
    assert digest(tmp_path / "models/backbone/1") == before


def test_a_first_build_needs_no_locks(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / ".models.building-0123").mkdir()
    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert ", version 1, " in build(BuildOptions(weights=checkpoint, output=tmp_path / "models", threads=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".models.building-0123", "models"]


def test_what_a_killed_build_has_left_is_removed(checkpoint: Path, tmp_path: Path) -> None:
    """The next build removes it, and nothing of a build that is running."""
    killed, living = tmp_path / ".models.building-0123", tmp_path / ".models.building-4567"
    for folder in (killed, living):
        (folder / "backbone/1").mkdir(parents=True)
        (folder / "backbone/1/model.pt").write_bytes(b"half")
    handle = os.open(living, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    build(BuildOptions(weights=checkpoint, output=tmp_path / "models", threads=1))
    os.close(handle)
    assert sorted(path.name for path in tmp_path.iterdir()) == [living.name, "models"]
    assert (living / "backbone/1/model.pt").read_bytes() == b"half"
