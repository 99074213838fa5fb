"""The system's programs that tests and benchmarks start."""

import os
import shutil

PACKAGES = {
    "haproxy": "haproxy",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "systemd-analyze": "systemd",
}
DAEMONS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # Debian keeps haproxy where only root's PATH leads


def find_program(name: str) -> str | None:
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), *DAEMONS]))


def missing(name: str) -> str:
    return f"{name} is not installed: apt-get install {PACKAGES[name]}"
