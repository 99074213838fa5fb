"""Starts and supervises a tritonserver on this machine: ``python -m server``, or `TritonServer` in a with statement."""

import sys

from server.errors import (
    GaveUpError,
    InstallationError,
    OptionError,
    PortInUseError,
    ReleaseError,
    RepositoryError,
    ServerError,
    StartError,
)

try:
    from server.supervisor import TritonServer
except ModuleNotFoundError as error:
    if sys.argv[:1] != ["-m"]:  # what it is while python -m looks for one of the commands
        raise
    sys.exit(f"server needs {error.name}: pip install '.[serve]' in the checkout")

__all__ = [
    "GaveUpError",
    "InstallationError",
    "OptionError",
    "PortInUseError",
    "ReleaseError",
    "RepositoryError",
    "ServerError",
    "StartError",
    "TritonServer",
]
