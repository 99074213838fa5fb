"""Whether the kernel has killed processes for lack of memory."""

import contextlib
import re
from pathlib import Path

VMSTAT = Path("/proc/vmstat")  # counts for the whole machine, whichever limit was reached
KILLED = (
    "the kernel has killed a process for lack of memory: raise the memory limit, or lower max_pixels or the number of "
    "instances"
)


def memory_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since it booted; 0 if it does not say."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^oom_kill (\d+)$", VMSTAT.read_text(), re.MULTILINE):
            return int(found.group(1))
    return 0
