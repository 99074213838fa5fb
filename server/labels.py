"""A model's labels, whose file tritonserver splits at newlines alone; it passes the lines on as they are.

It stands alone in the image, as checksums.py does.
"""

import math
import re
from pathlib import Path

ASIDE = re.compile(r"#[^\n]*|\breshape\s*:?\s*\{[^{}]*\}")  # a comment, or the one message that an output holds
OUTPUT = re.compile(r"""\{[^{}]*\blabel_filename\s*:\s*["']([^"'\n]+)["'][^{}]*\}""")
DIMS = re.compile(r"\bdims\s*:\s*(\[[^\]]*\]|-?\d+)")
NUMBER = re.compile(r"-?\d+")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class LabelsError(Exception):
    """A file of labels would be served otherwise than it is meant; the message has a remedy."""


def check_labels(model: Path, config: str) -> None:
    """`config`: the text of its config.pbtxt. Raises `LabelsError`; a file that is missing tritonserver names."""
    for output in OUTPUT.finditer(ASIDE.sub("", config)):
        path = model / output.group(1)
        if path.is_file() and (fault := _fault(path.read_bytes(), _classes(output.group()))):
            raise LabelsError(f"{path} {fault}: write one label a line in UTF-8, or run build_models.py")


def check_all_labels(repository: Path) -> None:
    """Those of every model. Raises `LabelsError`, `OSError`."""
    for config in sorted(repository.glob("*/config.pbtxt")):
        check_labels(config.parent, config.read_text(errors="replace"))


def _classes(output: str) -> int:
    """0: of an output whose size is open."""
    sizes = [int(size) for dims in DIMS.findall(output) for size in NUMBER.findall(dims)]
    return math.prod(sizes) if sizes and min(sizes) > 0 else 0


def _fault(content: bytes, classes: int) -> str:
    """Empty where there is none."""
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
