"""What is sent beside every request, for a gateway before the server: a key, a trace."""

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


def no_headers() -> dict[str, str]:
    return {}


def reader(headers: Headers) -> Callable[[], dict[str, str]]:
    """What gives the next request's headers, by names in lower case; it raises `ValueError` for what cannot be sent.

    A function is asked before each request, from any thread: a key that ends is then renewed. A mapping is read, and
    checked, once.
    """
    if headers is None:
        return no_headers
    if callable(headers):
        return lambda: _checked(headers())
    fixed = _checked(headers)
    return lambda: fixed


def _checked(headers: Any) -> dict[str, str]:
    if not isinstance(headers, Mapping):
        raise ValueError(f"headers are a {type(headers).__name__}: give a dict of names and values")
    for name, value in headers.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name.lower()):
            raise ValueError(f"header {name!r}: its name is letters, digits, '-', '_' and '.'")
        if _OWN.fullmatch(name.lower()):
            raise ValueError(f"header {name!r} is the client's own, or the protocol's: leave it out")
        if not isinstance(value, str) or not _VALUE.fullmatch(value):  # which is not told: it may be secret
            raise ValueError(f"header {name!r}: its value is visible ASCII, with blanks only inside")
    return {name.lower(): value for name, value in headers.items()}


def parse_headers(lines: Iterable[str]) -> dict[str, str]:
    """Of a command line: ``"name: value"``, or ``"@file"`` with one in each of its lines. Raises `ValueError`."""
    headers: dict[str, str] = {}
    for line in lines:
        if line.startswith("@"):
            headers |= parse_headers(_lines_of(line[1:]))
            continue
        name, colon, value = line.partition(":")
        if not colon:  # it may be a secret
            raise ValueError(f"header {line[:8]!r}... has no colon: write 'NAME: VALUE', or @FILE")
        headers[name.strip()] = value.strip()
    return headers


def _lines_of(file: str) -> list[str]:
    try:
        return [line for line in Path(file).read_text().splitlines() if line.strip() and not line.startswith("@")]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"header @{file} cannot be read ({reason}): name a file of lines 'NAME: VALUE'") from None
