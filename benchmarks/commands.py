"""What the benchmarks' command lines share."""

import argparse
from collections.abc import Iterable


def no_options(description: str | None) -> None:
    """--help says what is done; whatever else is asked for is refused before it is."""
    layout = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=description, formatter_class=layout).parse_args()


def chosen(text: str, known: Iterable[str], what: str) -> list[str]:
    """Names, by commas. Raises `SystemExit` for an unknown one."""
    names, known = text.split(","), list(known)
    for name in names:
        if name not in known:
            raise SystemExit(f"{what} {name!r} is unknown: choose from {', '.join(known)}")
    return names
