"""What can go wrong with a server.

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

# Of a file that cannot be written.
REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or have the quota raised",
    errno.EROFS: "mount it writable",
    errno.EFBIG: "raise the limit on a file's size (ulimit -f)",
}


def elsewhere(error: OSError) -> str:
    """What to do about a folder for temporary files that cannot be written."""
    remedy = REMEDIES.get(error.errno or 0, "fix that")
    return remedy if error.errno == errno.EFBIG else f"{remedy}, or name another in TMPDIR"


class ServerError(RuntimeError):
    """Base of all; the message is one line that says what is wrong and what to do."""


class InstallationError(ServerError):
    """tritonserver or something that it needs is missing, or of a wrong version."""


class RepositoryError(ServerError):
    """The model repository is missing, empty or not built."""


class OptionError(ServerError):
    """An option cannot be used: a host, a port, one port for two, the log file, a library, a token, TLS's files."""


class PortInUseError(ServerError):
    """A port that was asked for is another process's."""


class StartError(ServerError):
    """tritonserver ended, or did not answer a real inference in time."""


class ReleaseError(ServerError):
    """A version was not made live; the one before serves on."""


class GaveUpError(ServerError):
    """It kept failing after it had been ready, and the limit of restarts is reached."""


def exit_code(error: Exception) -> int:
    """Of a command that it ends: 2 for wrong usage, as argparse has it, else 1."""
    return 2 if isinstance(error, OptionError) else 1


def unforeseen(error: Exception) -> str:
    """The supervisor's line for an error that is not one of these."""
    return f"the supervisor failed: {type(error).__name__}: {error}"
