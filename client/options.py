"""The options that name a server and how it is reached, for every program that asks one."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from client._async_classifier import AsyncClassifier
from client._classifier import Classifier
from client._headers import parse_headers
from client._tls import TLS, TLSLike
from client._transport import LONGEST_TIMEOUT

Kind = TypeVar("Kind", Classifier, AsyncClassifier)


class UsageError(ValueError):
    """Wrong usage that argparse cannot see."""


def add_server_options(parser: argparse.ArgumentParser, retries: int = 2, timeout: float = 30.0) -> None:
    """Add the options that `open_classifier` reads."""
    parser.add_argument(
        "--url",
        action="append",
        help="server as host:port; may be repeated: they take turns (default: this machine, gRPC 8001, HTTP 8000)",
    )
    parser.add_argument(
        "--protocol", choices=["grpc", "http"], default="grpc", help="protocol of the requests (default: grpc)"
    )
    parser.add_argument(
        "--model", default="classifier", metavar="NAME", help="served model to ask (default: classifier)"
    )
    add_number(parser, "--timeout", positive, timeout, "SECONDS", "time limit for one image, retries included")
    add_number(parser, "--retries", whole(0), retries, "N", "further attempts after a failure that may pass")
    add_connection_options(parser)
    parser.add_argument("--tls-key", metavar="FILE", help="private key of --tls-certificate (PEM file)")
    parser.add_argument(
        "--shared-memory-token-file",
        metavar="FILE",
        help="send images through shared memory to servers on this host that were started with the token in this file",
    )


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """Add --header and those of encryption, without --tls-key: locust has one, which means the same."""
    parser.add_argument("--tls", action="store_true", help="encrypt; trust the authorities that this system trusts")
    parser.add_argument("--tls-root", metavar="FILE", help="encrypt; trust only this authority (PEM file)")
    parser.add_argument(
        "--tls-certificate", metavar="FILE", help="certificate of this client (PEM file), with --tls-key"
    )
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="header to send with every request, as for a gateway; may be repeated; @FILE: read one per line",
    )


def add_number(
    parser: argparse._ActionsContainer, name: str, parse: Callable[[str], float], default: float, unit: str, words: str
) -> None:
    parser.add_argument(name, type=parse, default=default, metavar=unit, help=f"{words} (default: {default:g})")


def add_top(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--top", whole(1), 5, "N", "classes to return for each image")


def open_classifier(options: argparse.Namespace, kind: type[Kind]) -> Kind:
    """Create the client that the options describe. Raises `UsageError`."""
    try:
        return kind(
            options.url,
            options.protocol,
            options.model,
            options.timeout,
            options.retries,
            tls=_tls(options),
            shared_memory_token=_token(options.shared_memory_token_file),
            headers=parse_headers(options.header),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def whole(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, {least} or more")
        if int(text) >= 2**31:
            raise argparse.ArgumentTypeError(f"{text!r}: give a whole number below {2**31}")
        return int(text)

    return parse


def positive(text: str) -> float:
    return _number(text, "more than 0", lambda value: value > 0)


def not_negative(text: str) -> float:
    return _number(text, "0 or more", lambda value: value >= 0)


def _number(text: str, words: str, holds: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not holds(value) or value > LONGEST_TIMEOUT:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number, {words} and at most {LONGEST_TIMEOUT}")
    return value


def _tls(options: argparse.Namespace) -> TLSLike:
    files: tuple[Any, ...] = (options.tls_root, options.tls_certificate, options.tls_key)
    return options.tls if files == (None, None, None) else TLS(*files)


def _token(file: str | None) -> str | None:
    """The file's first line. Raises `ValueError`."""
    if file is None:
        return None
    try:
        return Path(file).read_text().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", error)
        raise ValueError(
            f"--shared-memory-token-file {file} cannot be read ({reason}): name a file that holds the token"
        ) from None
