"""How many cores a server on this machine may keep busy."""

import contextlib
import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """This process's affinity, but at most a container's CPU quota (cgroup v2 or v1), rounded up."""
    # As model_repository/preprocess/1/model.py has it, which stands alone.
    allowed = len(os.sched_getaffinity(0))
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError):  # not this version's; "max"
            quota, period = (int(word) for file in files for word in (CGROUP / file).read_text().split())
            if quota > 0:  # v1 says -1 for no limit
                allowed = min(allowed, math.ceil(quota / period))
    return allowed
