"""The number of cores that a server on this machine may use, and models with more threads than that or far fewer.

The image has a copy of this file without the package, as of checksums.py.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
THREADS = re.compile(r'"(INTRA_OP|LONE)_THREAD_COUNT"\s*value\s*:?\s*\{\s*string_value\s*:\s*"(\d+)"')
GROUPS = re.compile(r"\binstance_group\s*:?\s*(\{[^}]*\}|\[(?:[^][]|\[[^]]*\])*\])")  # each, or a list; gpus: [0]
GROUP, COUNT = re.compile(r"\{[^}]*\}"), re.compile(r"\bcount\s*:\s*(\d+)")


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


def threads_of(config: str) -> tuple[int, int]:
    """Return the CPU threads of one execution of a model with this config.pbtxt, and of all its instances together, at
    most; zeros if it names none."""
    threads = {name: int(count) for name, count in THREADS.findall(config)}
    intra_op, lone = threads.get("INTRA_OP", 0), threads.get("LONE", 0)
    counts = (COUNT.search(group) for group in GROUP.findall(" ".join(GROUPS.findall(config))))
    instances = sum(int(count[1]) if count else 1 for count in counts) or 1
    return max(intra_op, lone), max(intra_op * instances, lone)


def too_many(configs: Iterable[str]) -> str:
    """Return a line if a model of these configs computes with more threads than there are cores; empty if not."""
    threads, cores = max((threads_of(config)[0] for config in configs), default=0), usable_cores()
    what = f"{threads} threads, but this server may use {cores} core{'s' if cores > 1 else ''}"
    return f"a model computes with {what}: build with --threads {cores}" if threads > cores else ""


def too_few(configs: Iterable[str]) -> str:
    """Return a line if the models of these configs leave more than half of the cores idle; empty if not."""
    threads, cores = max((threads_of(config)[1] for config in configs), default=0), usable_cores()
    what = f"{threads} of the {cores} cores that this server may use: build with --threads {cores}"
    return f"the models compute on no more than {what}" if 0 < 2 * threads < cores else ""
