"""Finds in tritonserver's log why it did not start."""

import re
from pathlib import Path

FAILED_LOAD = re.compile(r"""failed to load ('[^']+') version \d+: (?:\w+(?: \w+)?: )?(.*?)"?$""")
ERROR_LINE = re.compile(r"^(?:\S+Z E|E\d{4}) [^\]]*\] *\"?(.*?)\"?$")  # ISO8601, or tritonserver's own format
UNREADABLE = re.compile(r"Error parsing text-format inference\.ModelConfig: (\d+):(\d+): (.*)$")  # it names no file
INFORMATION = re.compile(r"\||\+|I\d{4} |\S+Z I | *\d+# ")  # the last: a crash's stack trace
CREATING = re.compile(r"^error: creating server: (?:\w+ - )?(.*)$")
USAGE = re.compile(r"^\S*tritonserver: (.*option.*)$")
NOISE = ("CudaDriverHelper", "NVML", "unable to create stream", "CUDA driver version", "DCGM", "pinned system memory")


def read_from(path: Path, offset: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(offset if offset <= file.seek(0, 2) else 0)  # the file has been truncated
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def failure_reasons(text: str) -> list[str]:
    """Return at most three lines: each model that failed and why, else the first errors, else the last line."""
    lines = [line for line in text.splitlines() if not any(noise in line for noise in NOISE)]
    reasons: list[str] = []
    for pattern in (USAGE, FAILED_LOAD, ERROR_LINE, CREATING):
        matches = [match for match in (pattern.search(line) for line in lines) if match]
        reasons = reasons or [": ".join(_first_line(group) for group in match.groups()) for match in matches]
    unreadable = (match for match in map(UNREADABLE.search, lines) if match)
    reasons[1:1] = ["line {}, column {}: {}".format(*match.groups()) for match in unreadable]
    last_words = [line.strip() for line in lines if line.strip() and not INFORMATION.match(line)][-1:]
    return list(dict.fromkeys(reasons or last_words))[:3]


def _first_line(message: str) -> str:
    """Return a Python traceback's first line; tritonserver appends the others, escaped."""
    return each_once(message.split("\\n")[0].replace('\\"', '"'))


def each_once(message: str) -> str:
    """Remove repeated reasons: a failed warm-up lists one for each image, each followed by "; "."""
    first, *others = map(str.strip, message.strip("; \n").split("; "))
    return "; ".join([first, *(reason for reason in dict.fromkeys(others) if not first.endswith(reason))])
