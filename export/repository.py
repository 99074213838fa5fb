"""Write model_repository/ atomically: preprocess, backbone, softmax and the ensemble `classifier`."""

import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from export.configs import EMBEDDED, ENSEMBLES, WARMUP_IMAGE, ServingSpec, configs
from export.existing import (
    KEPT_VERSIONS,
    RepositoryError,
    embedded_texts,
    kept_limits,
    labels_file,
    misfit,
    unused_number,
    version_numbers,
)
from export.torchscript import save_torchscript, script_softmax
from models.config import is_one_line
from models.errors import SettingsError
from models.files import lock_folder

PREPROCESS_SOURCE = Path(__file__).parents[1] / "model_repository" / "preprocess" / "1"


def write_repository(
    output: Path,
    spec: ServingSpec,
    labels: list[str],
    write_backbone: Callable[[Path], dict[str, Any]],
    warmup_image: bytes,
    version: int | None = None,
) -> tuple[int, list[str]]:
    """Add a backbone version to `output`; return its number, and notes on kept settings and removed versions.

    `write_backbone(folder)` writes the version's files and returns what build.json records beside their checksums.
    The newest `KEPT_VERSIONS` versions are kept if tensors, backend, labels and the preprocessing of images are
    unchanged; otherwise the earlier ones would be served wrongly, and are removed. Raises `RepositoryError`, also while
    another build, release or rollback is under way, and `SettingsError` for a version or an `output` that cannot be;
    after any error nothing has changed.
    """
    if len(labels) != spec.num_classes:
        raise RepositoryError(f"{len(labels)} labels for {spec.num_classes} classes: one line per class is needed")
    for index, label in enumerate(labels):
        if not is_one_line(label):
            raise RepositoryError(f"label {index} is {label!r}: a label is one line and not empty")
    with _moved_in_whole(output) as stage:
        number = _version_number(output, stage, version)
        config, embedded, notes = kept_limits(output, spec)
        versions = version_numbers(stage / "backbone")
        if versions and (reason := misfit(output, spec, labels)):
            notes.append(f"removed version {', '.join(map(str, versions))}: {reason}")
            for stale in versions:
                shutil.rmtree(stage / "backbone" / str(stale))
            versions = []
        folder = stage / "backbone" / str(number)
        folder.mkdir(parents=True)
        record = write_backbone(folder)
        _write_record(folder, sorted(folder.iterdir()), **record)
        for stale in [*versions, number][:-KEPT_VERSIONS]:
            shutil.rmtree(stage / "backbone" / str(stale))
        _write_constant_parts(stage, configs(config), embedded_texts(output, config, embedded), labels, warmup_image)
        if _is_served(output):
            notes.append(
                f"a server reads {output} and takes version {number} when it starts again: build with another --output "
                "and have python -m server.release prove it and put it live"
            )
    return number, notes


def check_output(output: Path, version: int | None = None) -> None:
    """Raise what `write_repository` would for a folder or a version that cannot be, before the work of a build."""
    output = output.resolve()
    for path in (output, *output.parents):
        if path.exists() and not path.is_dir():
            raise SettingsError(f"{path} is a file: --output {output} names a folder")
    if others := _no_models(output):
        named = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        raise RepositoryError(
            f"{output} is not a model repository, it holds {named}: give --output a folder of models, or a new one"
        )
    _version_number(output, output, version)


def _version_number(output: Path, copy: Path, version: int | None) -> int:
    """`version`, or the next one, of `output` as its `copy` is. Raises `SettingsError` for one that is or was taken."""
    unused = unused_number(copy / "backbone")
    number = version or unused
    if number < unused:  # the highest is served, the lowest are removed
        raise SettingsError(
            f"--version {number}: {output}/backbone has, or had, version {unused - 1}: "
            f"choose {unused} or more, or leave --version out"
        )
    return number


def _write_constant_parts(
    stage: Path, texts: dict[str, str], embedded: dict[str, str], labels: list[str], warmup_image: bytes
) -> None:
    for name, text in texts.items():
        if name != "backbone":  # its version is written already
            (stage / name / "1").mkdir(parents=True, exist_ok=True)
        _replace(stage / name / "config.pbtxt", text.encode())
    for name, text in embedded.items():
        (stage / name / EMBEDDED).parent.mkdir(exist_ok=True)
        _replace(stage / name / EMBEDDED, text.encode())
    for name in ENSEMBLES:
        if name not in texts:  # of an earlier build with class maps
            shutil.rmtree(stage / name, ignore_errors=True)
            continue
        _replace(stage / name / "labels.txt", labels_file(labels))
        version = stage / name / "1"
        _replace(version / ".gitkeep", b"")  # an ensemble needs a version folder, and it holds no model
        _write_record(version, [version.parent / "labels.txt"])
    if not (sources := list(PREPROCESS_SOURCE.glob("*.py"))):
        raise RepositoryError(f"{PREPROCESS_SOURCE} has no *.py: run build_models.py in a checkout, which has them")
    step = stage / "preprocess" / "1"
    for source in sources:
        _replace(step / source.name, source.read_bytes())
    warmup = stage / "preprocess" / "warmup" / WARMUP_IMAGE
    warmup.parent.mkdir(exist_ok=True)
    _replace(warmup, struct.pack("<I", len(warmup_image)) + warmup_image)  # a string element: its length, its bytes
    _write_record(step, [*sorted(step.glob("*.py")), warmup])
    softmax = stage / "softmax" / "1" / "model.pt"
    softmax.unlink(missing_ok=True)  # a hard link to the repository in use: never written through
    save_torchscript(script_softmax(), softmax)
    _write_record(softmax.parent, [softmax])


def _write_record(version: Path, files: list[Path], **record: Any) -> None:
    """Write build.json of a version: `record`, and the checksums that the server compares, by relative path."""
    digests = {os.path.relpath(file, version): sha256(file) for file in files}
    _replace(version / "build.json", (json.dumps({**record, "files_sha256": digests}, indent=2) + "\n").encode())


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Write a new file in the place of a hard link, never through it."""
    if path.exists():
        if path.read_bytes() == content:
            return
        path.unlink()
    path.write_bytes(content)


@contextmanager
def _moved_in_whole(output: Path) -> Iterator[Path]:
    """Yield a staging folder beside `output` that holds hard links to its files; exchange the two at the end."""
    check_output(output)
    output = output.resolve()
    backbone = output / "backbone"
    stage = output.parent / f".{output.name}.building-{secrets.token_hex(4)}"
    lock = _lock(backbone) if backbone.is_dir() else None
    making: int | None = None
    try:  # begins before there is a folder: SIGTERM may come at any time
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(output)
        stage.mkdir()
        with suppress(OSError):  # a file system without locks, on which nothing is removed either
            making = lock_folder(stage)
        if output.exists():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(output, stage, copy_function=_link, dirs_exist_ok=True, ignore=ignore)
        yield stage
        if lock is None and backbone.exists():
            raise RepositoryError(f"another build wrote {output} in the meantime: build again")
        if output.exists():
            _exchange(stage, output)
        else:
            stage.rename(output)
    except OSError as error:
        if not _of_output(error, output, stage):
            raise
        raise RepositoryError(f"{output} cannot be written ({error}): make room, or name another --output") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)  # the unfinished build, or the repository it replaced
        for handle in (making, lock):
            if handle is not None:
                os.close(handle)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)


def _of_output(error: OSError, output: Path, stage: Path) -> bool:
    """Whether the disk is full, or the error is about a file of the repository and not one that the build reads."""
    paths = [Path(os.fsdecode(name)) for name in (error.filename, error.filename2) if name is not None]
    if not paths or error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    within = any(path.is_relative_to(folder) for path in paths for folder in (output, stage))
    return within or any(output.is_relative_to(path) for path in paths)


def _remove_abandoned(output: Path) -> None:
    """Remove what killed builds have left beside `output`; a running one holds its lock."""
    for stage in output.parent.glob(f".{output.name}.building-*"):
        with suppress(OSError):  # it is running, or has just ended
            handle = lock_folder(stage)
            shutil.rmtree(stage, ignore_errors=True)
            os.close(handle)


def _no_models(output: Path) -> list[str]:
    """Names of visible entries other than models, in a folder that no build has written; beside models only folders."""
    if not output.exists() or any(output.glob("backbone/*/build.json")):
        return []
    shown = sorted(path for path in output.iterdir() if not path.name.startswith("."))
    others = [path for path in shown if not (path / "config.pbtxt").is_file()]
    return [path.name for path in others if path.is_dir() or len(others) == len(shown)]


def _lock(backbone: Path) -> int:
    """A handle that holds the lock of server.release and server.rollback (server/versions.py) until it is closed."""
    try:
        return lock_folder(backbone)
    except BlockingIOError:
        raise RepositoryError(
            f"another build, release or rollback of {backbone} is under way: build again when it has ended"
        ) from None


def _is_served(output: Path) -> bool:
    """Whether a server's launcher holds the repository (server/private_folder.py)."""
    try:
        os.close(lock_folder(output))
    except OSError as error:  # other errors: it does not exist yet, or its file system has no locks
        return isinstance(error, BlockingIOError)
    return False


def _exchange(a: Path, b: Path) -> None:
    """Swap two folders in one step of the file system (renameat2, RENAME_EXCHANGE)."""
    at_cwd, exchange = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) != 0:
        code = ctypes.get_errno()
        remedy = "if it is a mount point, build beside it"
        if code == errno.EINVAL:
            remedy = "its file system cannot swap two folders, build on another disk and copy it there"
        raise RepositoryError(f"cannot move the new repository to {b} ({os.strerror(code)}): {remedy}")
