"""Checks a model's file of labels: tritonserver splits it at newlines only and serves each line unchanged.

The image has a copy of this file without the package, as of checksums.py.
"""

import math
import re
from pathlib import Path

ASIDE = re.compile(r"#[^\n]*|\breshape\s*:?\s*\{[^{}]*\}")  # a comment, or the only message that an output may contain
OUTPUT = re.compile(r"""\{[^{}]*\blabel_filename\s*:\s*["']([^"'\n]+)["'][^{}]*\}""")
DIMS = re.compile(r"\bdims\s*:\s*(\[[^\]]*\]|-?\d+)")
NUMBER = re.compile(r"-?\d+")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LabelsError(Exception):
    """tritonserver would serve wrong labels; the message says what to do."""


def check_labels(model: Path, config: str) -> None:
    """Raise `LabelsError` for wrong labels; tritonserver reports a missing file. `config`: the text of config.pbtxt."""
    for output in OUTPUT.finditer(ASIDE.sub("", config)):
        path = model / output.group(1)
        if path.is_file() and (fault := _fault(path.read_bytes(), _classes(output.group()))):
            raise LabelsError(f"{path} {fault}: write one label a line in UTF-8, or run build_models.py")


def check_all_labels(repository: Path) -> None:
    """Run `check_labels` on every model. Raises `LabelsError` or `OSError`."""
    for config in sorted(repository.glob("*/config.pbtxt")):
        check_labels(config.parent, config.read_text(errors="replace"))


def _classes(output: str) -> int:
    """Return the number of elements of an output; 0 if a dimension is variable."""
    sizes = [int(size) for dims in DIMS.findall(output) for size in NUMBER.findall(dims)]
    return math.prod(sizes) if sizes and min(sizes) > 0 else 0


def _fault(content: bytes, classes: int) -> str:
    """Describe what is wrong with the file; empty if nothing is."""
    if content.startswith(BYTE_ORDER_MARK):
        return "begins with a byte order mark, which the first label would hold"
    if 0 < content.count(b"\n") == content.count(b"\r\n"):
        return "has Windows line ends (\\r\\n), and each label would end in \\r"
    try:
        text = content.decode().rstrip("\n")
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (byte {error.start})"
    count = len(text.split("\n")) if text else 0
    return f"has {count} labels for {classes} classes" if classes and count != classes else ""
