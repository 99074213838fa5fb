"""Starts and supervises a tritonserver on this machine: ``python -m server``, or `TritonServer` in a with statement."""

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
from server.supervisor import TritonServer

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
