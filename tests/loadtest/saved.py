"""A result of one steady phase, as `--results` saves it."""

from typing import Any


def as_saved(phase: dict[str, Any], slo: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "open_loop": True,
        "shape": "steady",
        "host": "box:8000",
        "model": "classifier",
        "images": {"count": 1, "bytes": 1, "from": "a test"},
        "workers": 1,
        "null_rate": 1000.0,
        "complete": True,
        "slo": slo,
        "phases": [phase],
        "windows": [],
    }
