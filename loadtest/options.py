"""The options that `python -m loadtest` and the locust command share."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.options import add_connection_options, add_number, add_top, not_negative, positive, whole
from loadtest.images import SIZES, find_below, parse_sizes
from loadtest.shapes import SHAPES

SECONDS, WARM_UP, PEAK = 10.0, 2.0, 4.0
SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # end a run as Ctrl-C does
USERS = {
    "grpc": ["GrpcClassifierUser"],
    "http": ["HttpClassifierUser"],
    "both": ["GrpcClassifierUser", "HttpClassifierUser"],
}


def server_address(protocol: str, host: str, grpc_host: str | None) -> str:
    """The address for `protocol`: --host for HTTP, --grpc-host (default: port 8001 of --host's host) for gRPC.

    Raises `ValueError` for a gRPC address that can only be guessed.
    """
    given, host = host, host.removeprefix("http://").rstrip("/")
    if protocol == "http":
        return host
    found = re.search(r":(\d+)(/.*)?$", host)
    port = found[1] if found else "443" if host.startswith("https://") else "8000"
    if not grpc_host and port not in ("8000", "8001"):
        raise ValueError(f"--host {given} says nothing of gRPC's port: give --grpc-host HOST:PORT too")
    return grpc_host or re.sub(r"(:\d+)?((?<!/)/[^/].*)?$", "", host.replace("https://", "grpcs://"), count=1) + ":8001"


at_least_one = whole(1)


def share(text: str) -> float:
    if (value := positive(text)) >= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a share, above 0 and below 1")
    return value


def processes(text: str) -> int:
    try:
        return os.cpu_count() or 1 if text == "-1" else at_least_one(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; -1 is one on each core") from None


def levels(text: str) -> list[float]:
    return [positive(part) for part in text.split(",")]


def check_writable(*files: str) -> None:
    """Raise `ValueError` for a file that cannot be written, before a run of minutes."""
    for path in map(Path, filter(None, files)):
        if not path.parent.is_dir():
            raise ValueError(f"{path} cannot be written: no folder {path.parent}")
        if path.is_dir():
            raise ValueError(f"{path} cannot be written: it is a folder")
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            raise ValueError(f"{path} cannot be written: permission denied")


def check_shape(options: argparse.Namespace) -> None:
    """Raise `ValueError` for an option that the chosen shape would ignore."""
    for name, shape in (("levels", "step"), ("peak", "spike")):
        if getattr(options, name) and options.shape != shape:
            raise ValueError(f"--{name} is for --shape {shape}: give that, or leave it out")


def check_target(options: argparse.Namespace) -> None:
    """Raise `ValueError` for a gRPC address that can only be guessed, or a key without its certificate."""
    if options.protocol != "http":
        server_address("grpc", options.host, options.grpc_host)
    if options.tls_key and not options.tls_certificate:
        raise ValueError(f"--tls-key {options.tls_key} belongs to --tls-certificate: give both, or leave it out")


def write_file(path: Path, text: str) -> None:
    """Write `text`. Raises an `OSError` that names the file, of which no part is left."""
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")  # a path in it may not be UTF-8
    except OSError as error:
        if error.filename is None and path.is_file():  # it was opened, and is not a device
            path.unlink()
        raise OSError(f"{path} cannot be written ({error.strerror}): name another file") from None


def write_files(files: Mapping[str, str]) -> bool:
    """Write each file that has a name; print why one cannot be written; return whether all were."""
    written = True
    for path, text in files.items():
        try:
            if path:
                write_file(Path(path), text)
        except OSError as error:
            print(f"loadtest: {error}", file=sys.stderr)
            written = False
    return written


def command_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m loadtest {command}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--protocol",
        choices=sorted(USERS),
        default="both",
        help="protocol of the requests; both: half of the load each (default: both)",
    )
    count = processes if command == "run" else at_least_one  # locust's own option takes -1
    add_number(parser, "--processes", count, 1, "N", "processes that send, on this machine")
    return parser


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Those of `add_target_options`, and the two that locust has itself."""
    parser.add_argument(
        "--host",
        "-H",
        default="127.0.0.1:8000",
        metavar="HOST:PORT",
        help="HTTP address of the server (default: 127.0.0.1:8000)",
    )
    add_target_options(parser)
    parser.add_argument("--tls-key", metavar="FILE", help="private key of --tls-certificate (PEM file)")


def add_target_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--grpc-host",
        default="",
        metavar="HOST:PORT",
        help="gRPC address of the server (default: --host's host, port 8001; needed if --host's is not 8000)",
    )
    add_image_options(parser)
    parser.add_argument(
        "--model", default="classifier", metavar="NAME", help="served model to ask (default: classifier)"
    )
    add_top(parser)
    add_number(parser, "--request-timeout", positive, 10.0, "SECONDS", "time limit for one request")
    add_connection_options(parser)


def add_image_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--images", default="", metavar="DIR", help="folder of images to send (default: photographs, resized)"
    )
    parser.add_argument(
        "--sizes",
        default="",
        metavar="PIXELS:COUNT,...",
        help=f"longer sides that images are resized to, with their shares (default: {SIZES})",
    )


def add_load_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default=None, help="course of the load over time (default: steady)")
    parser.add_argument(
        "--rate",
        type=positive,
        metavar="PER_S",
        help="open loop of this many requests a second, as a Poisson process (default: closed loop)",
    )
    parser.add_argument("--seconds", type=positive, help=f"time that is measured (default: {SECONDS:g})")
    parser.add_argument(
        "--warm-up",
        type=not_negative,
        metavar="SECONDS",
        help=f"time before that is not counted (default: {WARM_UP:g})",
    )
    parser.add_argument(
        "--levels",
        type=levels,
        default=[],
        metavar="A,B,...",
        help="rates or users of --shape step (default: 25, 50, 75, 100 %%)",
    )
    parser.add_argument(
        "--peak", type=positive, metavar="FACTOR", help=f"height of --shape spike over the level (default: {PEAK:g})"
    )
    parser.add_argument(
        "--slo", default="", metavar="FILE", help="TOML file of objectives; exit status 1 if one is missed"
    )
    add_file_options(parser)
    parser.add_argument("--null-rate", type=positive, default=None, help=argparse.SUPPRESS)  # for the report


def add_file_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", default="", metavar="FILE", help="write an HTML report to this file")
    parser.add_argument("--results", default="", metavar="FILE", help="write what was measured to this JSON file")


def image_options(options: argparse.Namespace) -> list[str]:
    """Return words of a command line. Raises `ValueError` for a folder without images or malformed sizes."""
    if options.sizes:
        parse_sizes(options.sizes)
    if options.images:
        find_below(options.images)
    return ["--images", options.images, "--sizes", options.sizes]


def as_words(options: Mapping[str, Any]) -> list[str]:
    """Return `options` as words of a command line."""
    words = []
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            if each is not False and each not in (None, ""):
                words += [f"--{name.replace('_', '-')}", *([] if each is True else [str(each)])]
    return words
