"""Options for the repository and the tokens, and signal handling, which the server's commands share."""

import argparse
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from server.management import VARIABLES
from server.tritonserver_options import MANAGEMENT_HEADER

LIBRARY = "native library of the operators (default: $WIDEFIELD_LIBRARY, else the built one)"


def add_token_options(parser: argparse.ArgumentParser, name: str = "management", asks: bool = False) -> None:
    """Add the options of a token. `name`: "management" or "shared-memory"; `asks`: the command is a client."""
    opens = {
        "management": f"opens the management interfaces, as for releases, to the header {MANAGEMENT_HEADER}",
        "shared-memory": "lets clients on this host send images through shared memory",
    }[name]
    says = "is the server's token" if asks else f"is a token that {opens}"
    token = parser.add_mutually_exclusive_group()
    token.add_argument(
        f"--{name}-token-file",
        metavar="FILE",
        help=f"file whose first line {says} (default: ${VARIABLES[name]}{'' if asks else ', else closed'})",
    )
    token.add_argument(
        f"--{name}-token",
        metavar="TOKEN",
        help="the token itself; every user of this machine can see it in the list of processes",
    )


def add_repository_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=Path("model_repository"),
        metavar="FOLDER",
        help="model repository that the server serves (default: %(default)s)",
    )


def add_seconds_option(parser: argparse.ArgumentParser, name: str, default: float, what: str) -> None:
    parser.add_argument(name, type=positive, default=default, metavar="SECONDS", help=f"{what} (default: {default:g})")


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def interrupt_on_signals() -> None:
    """Make SIGTERM raise `KeyboardInterrupt`, as Ctrl-C does; SIGHUP too, unless nohup ignores it."""
    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, interrupt)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore SIGINT, SIGTERM and SIGHUP during a short change that must not be left half done."""
    handlers = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def stopped_code(stop: KeyboardInterrupt) -> int:
    """Return a stopped command's exit code: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + (stop.args or (signal.SIGINT,))[0]
