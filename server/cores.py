"""The number of cores that a server on this machine may use, and models with more threads than that.

The image has a copy of this file without the package, as of checksums.py.
"""

import contextlib
import math
import os
import re
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
THREADS = re.compile(r'"(?:INTRA_OP|LONE)_THREAD_COUNT"\s*value\s*:?\s*\{\s*string_value\s*:\s*"(\d+)"')


def usable_cores() -> int:
    """Return the size of this process's affinity mask, at most the CPU quota (cgroup v2 or v1) rounded up."""
    # models/cores.py and model_repository/preprocess/1/model.py have copies: none of the three can import another.
    allowed = len(os.sched_getaffinity(0))
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # the other cgroup version, or "max"
            quota, period = (int(word) for file in files for word in (CGROUP / file).read_text().split())
            if quota > 0:  # v1 says -1 for no limit
                allowed = min(allowed, math.ceil(quota / period))
    return allowed


def configured_threads(config: str) -> int:
    """Return the largest number of CPU threads with which a model of this config.pbtxt executes."""
    return max([1, *map(int, THREADS.findall(config))])


def too_many(threads: int) -> str:
    """Return a line if a model computes with more threads than there are cores; empty if not."""
    cores = usable_cores()
    what = f"{threads} threads, but this server may use {cores} core{'s' if cores > 1 else ''}"
    return f"a model computes with {what}: build with --threads {cores}" if threads > cores else ""
