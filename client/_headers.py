"""Headers (gRPC: metadata) of every request, for a gateway in front of the server: a key, a trace."""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

Headers: TypeAlias = "Mapping[str, str] | Callable[[], Mapping[str, str]] | None"

_NAME = re.compile(r"[0-9a-z_.-]+")  # what HTTP and gRPC both take
_VALUE = re.compile(r"([!-~]([ -~]*[!-~])?)?")  # visible ASCII, blanks inside
_OWN = re.compile(  # what the client, or the protocol, writes itself
    r"content-.*|inference-.*|accept-encoding|host|connection|transfer-encoding|te|upgrade|user-agent|grpc-.*|.*-bin"
)


def reader(headers: Headers) -> Callable[[], dict[str, str]]:
    """Return a function that returns the next request's headers, or raises `ValueError` if they cannot be sent.

    If `headers` is a function, it is called before each request, from any thread, and may renew a key. A mapping is
    read and checked once, here. The returned names are in lower case.
    """
    if callable(headers):
        return lambda: _checked(headers())
    fixed = {} if headers is None else _checked(headers)
    return lambda: fixed


def _checked(headers: Any) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        raise ValueError(f"headers are a {type(headers).__name__}: give a dict of names and values")
    for name, value in headers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name.lower()):
            raise ValueError(f"header {name!r}: its name is letters, digits, '-', '_' and '.'")
        if _OWN.fullmatch(name.lower()):
            raise ValueError(f"header {name!r} is the client's own, or the protocol's: leave it out")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):  # not shown: it may be secret
            raise ValueError(f"header {name!r}: its value is visible ASCII, with blanks only inside")
    return {name.lower(): value for name, value in headers.items()}


def parse_headers(lines: Iterable[str]) -> dict[str, str]:
    """Parse a command line's headers: ``"name: value"``, or ``"@file"`` with one a line. Raises `ValueError`."""
    headers: dict[str, str] = {}
    for line in lines:
        if line.startswith("@"):
            headers |= parse_headers(_lines_of(line[1:]))
            continue
        name, colon, value = line.partition(":")
        if not colon:  # shown in part: it may be a secret
            raise ValueError(f"header {line[:8]!r}... has no colon: write 'NAME: VALUE', or @FILE")
        headers[name.strip()] = value.strip()
    return headers


def _lines_of(file: str) -> list[str]:
    try:
        lines = [line for line in Path(file).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"header @{file} cannot be read ({reason}): name a file of lines 'NAME: VALUE'") from None
    if any(line.startswith("@") for line in lines):  # it might name itself
        raise ValueError(f"header @{file} has a line that begins with @: write 'NAME: VALUE' in it, no other file")
    return lines
