"""What can go wrong with a server.

ServerError
├── InstallationError   tritonserver or something that it needs is missing, or of a wrong version
├── RepositoryError     the model repository is missing, empty or not built
├── OptionError         an option cannot be used: a host, a port's number or one port for two, the log file, a library
├── PortInUseError      a port that was asked for is another process's
├── StartError          tritonserver ended, or did not answer a real inference in time
├── ReleaseError        a version was not made live; the one before serves on
└── GaveUpError         it kept failing after it had been ready, and the limit of restarts is reached
"""


class ServerError(RuntimeError):
    """Base of all; the message is one line that says what is wrong and what to do."""


class InstallationError(ServerError):
    pass


class RepositoryError(ServerError):
    pass


class OptionError(ServerError):
    pass


class PortInUseError(ServerError):
    pass


class StartError(ServerError):
    pass


class ReleaseError(ServerError):
    pass


class GaveUpError(ServerError):
    pass


def exit_code(error: Exception) -> int:
    """Of a command that it ends: 2 for wrong usage, as argparse has it, else 1."""
    return 2 if isinstance(error, OptionError) else 1


def unforeseen(error: Exception) -> str:
    """The supervisor's line for an error that is not one of these."""
    return f"the supervisor failed: {type(error).__name__}: {error}"
