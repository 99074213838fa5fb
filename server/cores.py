"""The number of cores that a server on this machine may use."""

import contextlib
import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


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
