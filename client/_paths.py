"""What a user typed -> image files."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})


def find_images(folder: Path) -> list[Path]:
    """Every image file below `folder` by its suffix, sorted; hidden files and folders are left out."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def expand(arguments: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """(path, None) for each file, once, and (argument, what is wrong) where an argument leads to no file."""
    seen: set[str] = set()
    for argument in arguments:
        files, problem = _expand_one(argument)
        if problem is not None:
            yield argument, problem
        for file in files:
            if (name := str(file)) not in seen:
                seen.add(name)
                yield name, None


def _expand_one(argument: str) -> tuple[list[Path], str | None]:
    path = Path(argument)
    if path.is_dir():
        files = find_images(path)
        return files, None if files else f"the folder holds no image ({' '.join(sorted(SUFFIXES))})"
    if not path.exists() and glob.has_magic(argument):
        matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]
        files = [file for match in matches for file in (find_images(match) if match.is_dir() else [match])]
        return files, None if files else "the pattern matches no file"
    return [path], None  # a missing file too: it is reported like every other bad image
