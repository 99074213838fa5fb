"""Percentiles of latencies, as every benchmark of a server writes them."""

from collections.abc import Sequence

import numpy as np


def percentiles(seconds: Sequence[float], name: str = "") -> dict[str, float | None]:
    """Return `name`p50_ms and `name`p99_ms; None if there are no latencies."""
    values = np.percentile(seconds, [50, 99]) * 1e3 if seconds else [None, None]
    return {
        f"{name}p{part}_ms": None if value is None else round(float(value), 2)
        for part, value in zip((50, 99), values, strict=True)
    }
