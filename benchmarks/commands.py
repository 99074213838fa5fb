"""What the benchmarks' command lines share."""

import argparse
from collections.abc import Iterable
from importlib.machinery import ModuleSpec


def command_parser(description: str | None, spec: ModuleSpec | None) -> argparse.ArgumentParser:
    """--help shows `description` as it is written; `spec`, the module's own, says how it is called."""
    program = None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"
    layout = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=program, description=description, formatter_class=layout)


def no_options(description: str | None, spec: ModuleSpec | None) -> None:
    """--help says what is done; whatever else is asked for is refused before it is."""
    command_parser(description, spec).parse_args()


def chosen(text: str, known: Iterable[str], what: str) -> list[str]:
    """Names, by commas. Raises `SystemExit` for an unknown one."""
    names, known = text.split(","), list(known)
    for name in names:
        if name not in known:
            raise SystemExit(f"{what} {name!r} is unknown: choose from {', '.join(known)}")
    return names
