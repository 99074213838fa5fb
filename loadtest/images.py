"""The real pictures that the users send."""

import importlib.util
from pathlib import Path

from client import find_images

DIGITS = Path(__file__).parents[1] / "data" / "digits" / "val"


def default_folder() -> Path:
    """The held-out digits where they are, else the photographs that scikit-learn ships. Raises `FileNotFoundError`."""
    if DIGITS.is_dir():
        return DIGITS
    package = importlib.util.find_spec("sklearn")  # looked up, not imported
    if package is None or not package.submodule_search_locations:
        raise FileNotFoundError("no images: name a folder with --images")
    return Path(package.submodule_search_locations[0], "datasets", "images")


def load_images(folder: Path | None = None, limit: int = 500) -> list[bytes]:
    """The encoded bytes of up to `limit` images below `folder`, evenly picked. Raises `FileNotFoundError`."""
    folder = default_folder() if folder is None else folder
    paths = find_images(folder)
    if not paths:
        raise FileNotFoundError(f"no image below {folder}: name another folder with --images")
    step = max(1.0, len(paths) / limit)
    return [paths[int(number * step)].read_bytes() for number in range(min(limit, len(paths)))]
