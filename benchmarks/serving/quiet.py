"""The processor time that other processes used while a server was measured.

An operator's threads wait for each other at its end: if another process takes a core for a moment, all wait. A loop of
replknet_nano with two threads on two cores takes a few milliseconds an image, and ten times that beside compilers.
"""

import contextlib

import psutil

from benchmarks.serving.servers import tree

LIMIT = 0.1  # cores: if others used more, the run is disturbed, and the next call repeats it


class Others:
    """Measures, from its creation, the cores that were busy with neither this process nor the tree of `pid`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.begun, self.elapsed = self._foreign_s()

    def cores(self) -> float:
        foreign, elapsed = self._foreign_s()
        cores = psutil.cpu_count() or 1
        return round(max(0.0, foreign - self.begun) / (elapsed - self.elapsed) * cores, 3)

    def _foreign_s(self) -> tuple[float, float]:
        """Processor seconds of other processes, and of the whole machine including idle time."""
        times = psutil.cpu_times()
        idle = times.idle + times.iowait
        whole = idle + times.user + times.nice + times.system + times.irq + times.softirq + times.steal
        own = 0.0
        for process in (psutil.Process(), *tree(self.pid)):
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                own += used.user + used.system + used.children_user + used.children_system
        return whole - idle - own, whole
