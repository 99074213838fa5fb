"""Check, before any work, that results can be written where they are wanted."""

import os
import tempfile
from pathlib import Path

from models.checkpoint import CONFIG_FILE
from models.weights import WEIGHTS_FILE
from training.lists import VAL_LIST
from training.logs import LOG_FILE
from training.settings import ARGUMENTS_FILE, SettingsError


def check_folder(option: str, folder: Path) -> None:
    """Raise `SettingsError` if no file can be written in `folder`, which need not exist yet."""
    _check(option, folder, folder)


def check_file(option: str, path: Path) -> None:
    """Raise `SettingsError` if `path` cannot be written; its folder need not exist yet."""
    if path.is_dir():
        raise SettingsError(f"{option} {path} is a folder: name a file")
    if path.exists() and path.name in (WEIGHTS_FILE, CONFIG_FILE, ARGUMENTS_FILE, LOG_FILE, VAL_LIST):
        raise SettingsError(f"{option} {path} is a file of a training run: name another")
    if not path.exists():
        _check(option, path, path.parent)
    elif not os.access(path, os.W_OK):
        raise SettingsError(f"{option} {path} may not be written: name another file")


def check_outside(output: Path, images: Path) -> None:
    """Raise `SettingsError` for an --output among the `images`: results would be taken for more images."""
    if output.resolve().is_relative_to(images.resolve()):
        raise SettingsError(f"--output {output} lies among the images of {images}: name a folder outside it")


def check_no_checkpoint(option: str, folder: Path) -> None:
    """Raise `SettingsError` for a folder with a checkpoint, or with a run in progress, that would be lost."""
    for name in (WEIGHTS_FILE, CONFIG_FILE, ARGUMENTS_FILE, "last"):
        if (folder / name).exists():
            raise SettingsError(f"{option} {folder} holds a checkpoint ({name}): name another folder")


def _check(option: str, asked: Path, folder: Path) -> None:
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise SettingsError(f"{option} {asked} cannot be written ({there}: {error.strerror}): name another") from error
