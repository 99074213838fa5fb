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

try:
    from server.supervisor import TritonServer
    from server.tls import Tls
except ModuleNotFoundError as error:  # `python -m` prints an ImportError in one line if `name` is this package
    message = f"server needs {error.name}: pip install '.[serve]' in the checkout"
    raise ImportError(message, name=__name__) from None

__all__ = [
    "GaveUpError",
    "InstallationError",
    "OptionError",
    "PortInUseError",
    "ReleaseError",
    "RepositoryError",
    "ServerError",
    "StartError",
    "Tls",
    "TritonServer",
]
