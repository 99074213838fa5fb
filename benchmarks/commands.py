"""Parsers that the benchmarks' command lines share."""

import argparse
import math
import signal
import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec


def command_parser(description: str | None, spec: ModuleSpec | None) -> argparse.ArgumentParser:
    """A parser whose --help shows `description` unwrapped; the module's `spec` gives the command in the usage line."""
    program = None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=program, description=description, formatter_class=layout)


def no_options(description: str | None, spec: ModuleSpec | None) -> None:
    """Parse a command line that has no options but --help; exits with status 2 for any other."""
    command_parser(description, spec).parse_args()


def whole_number(text: str, least: int = 1) -> int:
    """Parse a whole number of at least `least`, as an argparse type."""
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, {least} or more")
    return int(text)


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0")
    return value


def add_batches(parser: argparse.ArgumentParser, default: list[int] | None, said: str) -> None:
    parser.add_argument("--batches", type=whole_number, nargs="+", default=default, metavar="N", help=said)


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    said = "rounds in which the candidates take turns (default: %(default)s)"
    parser.add_argument("--rounds", type=whole_number, default=default, help=said)


def add_seconds(parser: argparse.ArgumentParser, default: float) -> None:
    said = "duration of each load in seconds (default: %(default)g)"
    parser.add_argument("--seconds", type=positive, default=default, help=said)


def exit_on_sigterm() -> None:
    """Let SIGTERM end the process by an exit, status 143, so that what it has started is ended too."""

    def end(number: int, frame: object) -> None:
        print("ended by SIGTERM", file=sys.stderr)
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def add_names(
    parser: argparse.ArgumentParser, option: str, default: Iterable[str], what: str, known: Iterable[str] = ()
) -> None:
    """Add an option of names, separated by spaces; any name if none is `known`."""
    names = list(default)
    said, metavar = f"{what} (default: {' '.join(names)})", option.strip("-").removesuffix("s").upper()
    parser.add_argument(option, nargs="+", default=names, metavar=metavar, choices=list(known) or None, help=said)


def check_archs(parser: argparse.ArgumentParser, *archs: str) -> None:
    """Exit with status 2 for an unknown architecture."""
    from models import check_arch

    for arch in archs:
        try:
            check_arch(arch)
        except ValueError as error:
            parser.error(str(error))
