"""Serve a model repository with tritonserver until Ctrl-C or SIGTERM."""

import argparse
import contextlib
import ipaddress
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from server.command_line import LIBRARY, add_token_options, interrupt_on_signals
from server.endpoints import resolve
from server.errors import OptionError, ServerError, exit_code
from server.management import VARIABLES, read_token
from server.supervisor import TritonServer
from server.systemd import notify
from server.tls import tls_of


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    parser.add_argument(
        "--model-repository",
        action="append",
        metavar="FOLDER",
        help="model repository to serve (default: model_repository)",
    )
    for name, what in (("host", "HTTP and gRPC listen"), ("metrics-host", "the metrics listen")):
        parser.add_argument(
            f"--{name}",
            default="127.0.0.1",
            metavar="HOST",
            help=f"address where {what} (default: 127.0.0.1, this machine only)",
        )
    for name, what, port in (("http", "HTTP", 8000), ("grpc", "gRPC", 8001), ("metrics", "the metrics", 8002)):
        parser.add_argument(
            f"--{name}-port",
            type=int,
            default=port,
            metavar="PORT",
            help=f"port of {what}; 0: a free one (default: {port})",
        )
    parser.add_argument("--library", metavar="FILE", help=LIBRARY)
    parser.add_argument(
        "--log-file",
        metavar="FILE",
        help="file for tritonserver's log; -: standard error (default: one in $TMPDIR, removed at the end)",
    )
    for name, kind, default, unit, what in (
        ("start-timeout", float, 120.0, "SECONDS", "time from the start until the first image must be classified"),
        ("drain-seconds", int, 30, "SECONDS", "time at the end for requests in flight and open HTTP connections"),
        ("probe-interval", float, 10.0, "SECONDS", "time between two canary images, which test that it classifies"),
        ("probe-timeout", float, 10.0, "SECONDS", "time limit for a canary image"),
        ("max-restarts", int, 5, "N", "restarts of a failed server within five minutes before the command gives up"),
    ):
        parser.add_argument(
            f"--{name}", type=kind, default=default, metavar=unit, help=f"{what} (default: {default:g})"
        )
    for name in VARIABLES:
        add_token_options(parser, name)
    tls = parser.add_argument_group(
        "TLS for gRPC", "PEM files; HTTP then listens on this machine only (deploy/haproxy)"
    )
    tls.add_argument("--tls-certificate", metavar="FILE", help="certificate of the server, with any intermediate ones")
    tls.add_argument("--tls-key", metavar="FILE", help="private key of --tls-certificate, without a passphrase")
    tls.add_argument(
        "--tls-client-ca", metavar="FILE", help="authority that must have signed the clients' certificates (mutual TLS)"
    )
    parser.add_argument(
        "--example", default="IMAGE", metavar="FILE", help="image to name in the client command that is printed"
    )
    parser.add_argument("tritonserver_args", nargs="*", metavar="-- OPTION", help="options passed on to tritonserver")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0 after a clean stop, 1 if the server did not start or kept failing, 2 for a bad option."""
    options = vars(parse_arguments(arguments))
    interrupt_on_signals()
    begun = time.monotonic()
    example = options.pop("example")
    server = None
    try:
        server = server_of(options)
        with server:
            try:
                say(f"ready after {time.monotonic() - begun:.1f} s")
                url, protocol = (server.grpc_url, "grpc") if server.launch.tls is None else (server.http_url, "http")
                show(
                    f"  HTTP     http://{server.http_url}\n"
                    f"  gRPC     {server.grpc_url}\n"
                    f"  metrics  http://{server.metrics_url}/metrics\n"
                    f"try:  {client_command(example, url, protocol)}"
                )
                notify("READY=1")
                server.wait()
            except KeyboardInterrupt:
                notify("STOPPING=1")
                what = f"requests in flight and open HTTP connections, {server.launch.drain_seconds} s at most"
                say(f"stopping: waiting for {what} (again to end at once)")
    except KeyboardInterrupt:
        if server is not None:
            server.stop(at_once=True)
    except ServerError as error:
        say(f"error: {error}")
        return exit_code(error)
    say("stopped")
    return 0


def server_of(options: dict[str, Any]) -> TritonServer:
    """Make the server from the command line's options without starting it. Raises `OptionError`."""
    check_words(options["tritonserver_args"])
    folder, *more = options.pop("model_repository") or ["model_repository"]
    if more:
        raise OptionError(f"--model-repository is given twice ({folder}, {more[0]}): one server serves one folder")
    host, options["host"] = options["host"], resolve(options["host"])
    if not ipaddress.ip_address(options["host"]).is_loopback and options["tls_client_ca"] is None:
        say(
            f"warning: {host} is reachable from other machines; tritonserver has no authentication"
            f"{' but mutual TLS (--tls-client-ca)' if options['tls_certificate'] else ''}. "
            "Put a proxy in front, and use a current container (deploy/) for production."
        )
    for name in VARIABLES:
        token = f"{name.replace('-', '_')}_token"
        options[token] = read_token(options[token], options.pop(f"{token}_file"), name=name)
    options["tls"] = tls_of(*(options.pop(name) for name in ("tls_certificate", "tls_key", "tls_client_ca")))
    for variable in VARIABLES.values():
        os.environ.pop(variable, None)  # so that child processes do not inherit it
    return TritonServer(folder, **options, on_event=say)


def check_words(passed_on: list[str]) -> None:
    """Raise `OptionError` if the first word does not start with "-"."""
    if passed_on and not passed_on[0].startswith("-"):
        word = passed_on[0]
        meant = f"did you mean --model-repository {word}?" if Path(word).is_dir() else "see --help"
        raise OptionError(f"{word!r} is not an option: {meant}")


def client_command(image: str, url: str, protocol: str = "grpc") -> str:
    """Return a client command for another shell in this folder, which need not have the virtual environment active."""
    here = os.path.join(os.getcwd(), "")
    python = os.path.relpath(sys.executable) if sys.executable.startswith(here) else sys.executable
    return shlex.join([python, "-m", "client", "classify", image, "--url", url, "--protocol", protocol])


def show(text: str) -> None:
    """Print to standard output; if it is closed, the server keeps running."""
    try:
        print(text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


def say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(f"server: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
