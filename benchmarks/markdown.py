"""Tables and paragraphs in the documentation's Markdown."""

import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(header)} |", "|" + "---|" * len(header), *(f"| {' | '.join(row)} |" for row in rows)]


def beside(published: float | None) -> str:
    """The published figure in brackets, to follow our own; empty if there is none."""
    return "" if published is None else f" ({published:g})"


def conditions(result: dict[str, Any]) -> str:
    """The machine, the versions and the day of one results file; and whether the host was busy."""
    machine = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    instructions = "/".join(machine["instructions"])
    return f"{machine['cpu']}, {machine['cores']} cores, {instructions}; {versions}; {result['date']}{busy(result)}"


def busy(result: dict[str, Any]) -> str:
    """What else ran, if the results file has a warning; else empty."""
    return f"; the host was busy: {result['warning'].split(':')[0]}" if result.get("warning") else ""


def wrapped(text: str) -> str:
    """Wrap paragraphs and lists to 120 columns; tables, headings, pictures and code are left as they are."""
    return "\n\n".join(map(wrapped_block, re.split(r"\n{2,}", text.strip()))) + "\n"


def wrapped_block(block: str) -> str:
    if re.match(r"[|#!]|    |\*\*[^*]*\*\*$", block):
        return block
    items = [" ".join(item.split()) for item in re.split(r"\n(?=- )", block)]
    layout: dict[str, Any] = {"width": 120, "break_long_words": False, "break_on_hyphens": False}
    return "\n".join(textwrap.fill(each, subsequent_indent="  " * each.startswith("- "), **layout) for each in items)
