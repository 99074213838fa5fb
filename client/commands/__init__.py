"""``python -m client COMMAND``: one module a command."""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from client.commands import bench, classify, explain, status, watch
from client.options import UsageError

EPILOG = "Exit status: 0 everything was answered, 1 something was not, 2 wrong usage, 130 interrupted."


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m client",
        description="Classify images with Widefield servers, and inspect the servers.",
        epilog=EPILOG,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for module in (classify, watch, explain, status, bench):
        summary, _, more = (module.__doc__ or "").partition("\n")
        command = commands.add_parser(
            module.__name__.rpartition(".")[2],
            help=summary.rstrip("."),
            description=f"{summary}\n{more}",
            epilog=EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run, parser=command)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed: print(file=None) writes to the other one
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  as long as the process
    options = parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a file's name need not be UTF-8: it is printed as it is
    try:
        return int(options.run(options))
    except UsageError as error:
        options.parser.print_usage(sys.stderr)
        print(f"{options.parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except UnicodeEncodeError as error:
        lacks = f"{error.encoding} has no {error.object[error.start : error.end]!a}"
        print(f"{options.parser.prog}: {lacks}: set PYTHONIOENCODING=utf-8", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"{options.parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
