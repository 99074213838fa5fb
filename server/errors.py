"""The errors of the package.

ServerError
├── InstallationError
├── RepositoryError
├── OptionError
├── PortInUseError
├── StartError
├── ReleaseError
└── GaveUpError
"""

import errno

# What to do if a file cannot be written.
REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or have the quota raised",
    errno.EROFS: "mount it writable",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f)",
}


def elsewhere(error: OSError) -> str:
    """Say what to do if a folder for temporary files cannot be written."""
    remedy = REMEDIES.get(error.errno or 0, "fix that")
    return remedy if error.errno == errno.EFBIG else f"{remedy}, or name another in TMPDIR"


class ServerError(RuntimeError):
    """The base class. The message is one line that says what is wrong and what to do."""


class InstallationError(ServerError):
    """tritonserver or a dependency of it is missing or has the wrong version."""


class RepositoryError(ServerError):
    """The model repository is missing, empty or not built."""


class OptionError(ServerError):
    """An option cannot be used: a host, a port, a log file, a library, a token or a TLS file."""


class PortInUseError(ServerError):
    """Another process listens on a requested port."""


class StartError(ServerError):
    """tritonserver ended, or did not answer the first inference in time."""


class ReleaseError(ServerError):
    """A version was not made live; the previous one is still served."""


class GaveUpError(ServerError):
    """tritonserver was ready once but kept failing, and the limit of restarts is reached."""


def exit_code(error: Exception) -> int:
    """Return a command's exit code: 2 for wrong usage, as argparse does, else 1."""
    return 2 if isinstance(error, OptionError) else 1


def unforeseen(error: Exception) -> str:
    """Return the supervisor's message for an unexpected error."""
    return f"the supervisor failed: {type(error).__name__}: {error}"
