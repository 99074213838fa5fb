"""Compares models with the checksums in their build.json.

The image has a copy of this file without the package (deploy/image/serve.py), so it imports only the standard library.
"""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import BinaryIO

RECORD = "build.json"
READABLE = "fix that, or serve it as a user who may read it"
VERSION = re.compile("[1-9][0-9]*")  # tritonserver ignores a folder of another name, such as 010


class ChecksumError(Exception):
    """A file is missing, cut off or changed since the build, or a folder is not a model; the message has a remedy."""


def newest_version(model: Path) -> Path | None:
    """Return the version folder with the highest number, which tritonserver loads; None if there is none."""
    return next(reversed(version_folders(model)), None)


def version_folders(model: Path) -> list[Path]:
    """Return a model's version folders in ascending order; none if there is no such model."""
    found = model.iterdir() if model.is_dir() else ()
    versions = (folder for folder in found if VERSION.fullmatch(folder.name) and folder.is_dir())
    return sorted(versions, key=lambda folder: int(folder.name))


def check_folders(repository: Path) -> None:
    """Raise `ChecksumError` for a folder that is no model, such as lost+found: tritonserver would try to load it."""
    for folder in sorted(repository.iterdir()):
        if folder.is_dir() and not (folder / "config.pbtxt").is_file():
            raise ChecksumError(
                f"{folder} is not a model (no config.pbtxt), and tritonserver takes every folder for one: "
                "remove it, or serve a folder that holds only models"
            )


def compare_newest(repository: Path) -> None:
    """Run `compare` on the newest version of each model, which tritonserver loads. Raises `ChecksumError`."""
    try:
        check_folders(repository)
        for version in _newest_versions(repository):
            compare(version)
    except OSError as error:
        raise ChecksumError(f"{repository} cannot be read ({error}): {READABLE}") from error


def unchecked(repository: Path) -> str:
    """Return a line about the newest versions that have no build.json; empty if all have one."""
    unknown = [version for version in _newest_versions(repository) if not (version / RECORD).is_file()]
    names = [f"{version.parent.name}/{version.name}" for version in unknown]
    return f"{', '.join(names)}: served unchecked, without {RECORD}; build_models.py writes it" if names else ""


def compare(version: Path, suggest_removal: bool = True) -> None:
    """Raise `ChecksumError` if a file does not match its checksum. Skips a version without build.json (`unchecked`).

    `suggest_removal`: whether the message may suggest that build.json be removed, after which a release is refused.
    """
    record = version / RECORD
    if not record.is_file():
        return
    remedy = "build it again"
    if len(version_folders(version.parent)) > 1:
        remedy += f", or remove {version} to go back to the version before"
    try:
        expected = {str(name): str(digest) for name, digest in json.loads(record.read_text())["files_sha256"].items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ChecksumError(f"{record} is damaged ({type(error).__name__}): {remedy}") from error
    if suggest_removal:
        remedy += f"; if the change is intended, remove {record}"
    for name, digest in expected.items():
        path = Path(os.path.normpath(version / name))  # labels.txt is in the folder above
        try:
            with path.open("rb") as file:
                found = _sha256(file)
        except OSError as error:
            how = remedy if isinstance(error, FileNotFoundError) else READABLE
            raise ChecksumError(f"{path} cannot be read ({error.strerror}): {how}") from error
        if found != digest:
            differs = f"sha256 {found[:12]}..., not {digest[:12]}..."
            raise ChecksumError(f"{path} is not what was built ({differs}): {remedy}")


def _newest_versions(repository: Path) -> list[Path]:
    """Return the newest version folder of each model that has one."""
    found = (newest_version(config.parent) for config in sorted(repository.glob("*/config.pbtxt")))
    return [version for version in found if version is not None]


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
