"""What export writes and server changes in a model repository, said once. Imports nothing of ours."""

import re
from pathlib import Path

KEPT = 3  # the newest versions
# Parameters of preprocess that bound what it accepts: they change no accepted image, and are the repository's own.
LIMITS = ("max_file_bytes", "max_pixels")
WITHDRAWN = re.compile(r"\.(\d+)\.withdrawn")


def version_numbers(model: Path) -> list[int]:
    """The version folders N of a model in a repository, ascending; what else lies there is not tritonserver's."""
    return sorted(int(p.name) for p in model.glob("[1-9]*") if p.name.isdecimal() and p.is_dir())


def withdrawn_numbers(model: Path) -> list[int]:
    """Those that were rolled back or failed, ascending."""
    found = (WITHDRAWN.fullmatch(path.name) for path in model.glob(".*.withdrawn"))
    return sorted(int(each.group(1)) for each in found if each)


def withdrawn_folder(model: Path, number: int) -> Path:
    """Where a withdrawn version lies, hidden from tritonserver."""
    return model / f".{number}.withdrawn"


def unused_number(model: Path) -> int:
    """Higher than all that are or were there, so that a number means one set of weights."""
    return max([0, *version_numbers(model), *withdrawn_numbers(model)]) + 1
