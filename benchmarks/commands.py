"""Parsers that the benchmarks' command lines share."""

import argparse
import math
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


def whole_numbers(text: str) -> list[int]:
    """Parse whole numbers of at least 1, separated by commas, as an argparse type."""
    return [whole_number(part) for part in text.split(",")]


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number above 0")
    return value


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    said = "rounds in which the candidates take turns (default: %(default)s)"
    parser.add_argument("--rounds", type=whole_number, default=default, help=said)


def add_seconds(parser: argparse.ArgumentParser, default: float) -> None:
    said = "duration of each load in seconds (default: %(default)g)"
    parser.add_argument("--seconds", type=positive, default=default, help=said)


def add_archs(parser: argparse.ArgumentParser, default: str) -> None:
    said = "architectures to measure, separated by commas (default: %(default)s)"
    parser.add_argument("--archs", default=default, help=said)


def known_archs(text: str) -> list[str]:
    """Parse names separated by commas. Raises `SystemExit` for an unknown architecture."""
    from models import check_arch

    try:
        for name in text.split(","):
            check_arch(name)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    return text.split(",")


def chosen(text: str, known: Iterable[str], what: str) -> list[str]:
    """Parse names separated by commas. Raises `SystemExit` for a name that is not in `known`."""
    names, known = text.split(","), list(known)
    for name in names:
        if name not in known:
            raise SystemExit(f"{what} {name!r} is unknown: choose from {', '.join(known)}")
    return names
