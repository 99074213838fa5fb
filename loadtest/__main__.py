"""Test a running server under load: run, capacity, null, report.

    python -m loadtest --protocol both --users 4 --seconds 10
    python -m loadtest run --rate 40 --shape step --slo slo.toml --report report.html
    python -m loadtest capacity --slo slo.toml --report report.html
    python -m loadtest null
    python -m loadtest report results.json report.html

`run` may be left out, and takes locust's own options too (--processes 2, --master, --worker, --csv ...).
Exit status: 0 good; 1 an objective was missed (without --slo: a request was not answered), or a file was not written; 2
wrong usage; 3 the load generator cannot send twice the rate that was asked for; stopped: 130 Ctrl-C, 143 SIGTERM.
A `run` that is stopped under load shows what it has measured; with --slo its status is 1.
"""

import argparse
import importlib.util
import json
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from loadtest.capacity_command import capacity
from loadtest.null_check import NULL_SERVER, null_rate
from loadtest.options import (
    PEAK,
    SECONDS,
    SIGNALS,
    USERS,
    add_image_options,
    add_load_options,
    add_server_options,
    add_target_options,
    as_words,
    check_shape,
    check_target,
    check_writable,
    command_parser,
    image_options,
    write_file,
)
from loadtest.shapes import plan, whole_users
from loadtest.slo import load_slo

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
NEEDED = ("locust", *(() if sys.version_info >= (3, 11) else ("tomli",)))  # beyond what the client needs


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    reported = arguments[:1] == ["report"] or any(word.startswith("--report") for word in arguments)
    needed = (*NEEDED, "matplotlib") if reported else NEEDED
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        print(f"loadtest needs {', '.join(missing)}: pip install '.[loadtest]' in the checkout", file=sys.stderr)
        return 1
    commands = {"run": run, "capacity": capacity, "null": null, "report": report}
    command = commands[arguments.pop(0)] if arguments and arguments[0] in commands else run
    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has SIGHUP ignored
            signal.signal(number, _interrupt)  # else child processes would keep running
    try:
        return command(arguments)
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error)
        print(text if text.startswith("loadtest: ") else f"loadtest: {text}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt as stop:
        print("loadtest: stopped", file=sys.stderr)
        return 128 + (stop.args or (signal.SIGINT,))[0]


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt(number)


def run(arguments: Sequence[str]) -> int:
    parser = command_parser("run", __doc__ or "")
    add_server_options(parser)
    parser.add_argument(
        "-u",
        "--users",
        type=int,
        metavar="N",
        help="closed loop of this many users in all (default: 4, with --shape step 8)",
    )
    parser.add_argument(
        "--null-check",
        choices=("refuse", "warn", "off"),
        default="refuse",
        help=f"what to do if this machine, as measured first, cannot send twice an open loop's rate to {NULL_SERVER} "
        "(default: refuse; off: do not measure)",
    )
    add_load_options(parser)
    options, of_locust = parser.parse_known_args(arguments)
    if options.users is not None and options.rate is not None:
        parser.error("give --users (closed loop) or --rate (open loop), not both")
    if options.users is not None and options.levels:
        parser.error("--users does nothing with --levels, which are users already: leave one of them out")
    check_shape(options)
    check_target(options)
    if options.rate is None and options.users is None:
        options.users = 8 if options.shape == "step" else 4
    level = options.users if options.rate is None else options.rate
    phases = plan(options.shape or "steady", level, SECONDS, 0.0, options.levels, options.peak or PEAK)
    if options.rate is None:
        whole_users(phases, len(USERS[options.protocol]))  # before the null check, which takes seconds
    peak = max(phase.level for phase in phases)
    if of_locust:
        _check_locust_options(of_locust)
    check_writable(options.report, options.results)
    if options.slo:
        load_slo(options.slo)
    images = image_options(options)
    if options.null_check != "off" and "--worker" not in of_locust:
        options.null_rate = null_rate(options.protocol, options.processes, images)
        print(f"loadtest: {options.null_rate:.0f} requests/s go to {NULL_SERVER}", file=sys.stderr)
        if options.rate is not None and peak > options.null_rate / 2:
            print(
                f"loadtest: {peak:g} requests/s are more than half of the {options.null_rate:.0f} that this load "
                f"generator sends to {NULL_SERVER}: use --processes, send from more machines, or --null-check warn",
                file=sys.stderr,
            )
            if options.null_check == "refuse":
                return 3
    return _locust(options, of_locust)


def _check_locust_options(words: Sequence[str]) -> None:
    """Reject what locust would, before the null check, which takes seconds. Raises `ValueError` or exits with 2."""
    from locust.argument_parser import get_parser

    parser = get_parser()
    add_target_options(parser)  # a locust.conf may hold them
    add_load_options(parser)
    known, rest = parser.parse_known_args(words)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:  # first: the value of an unknown option is parsed as a command
        raise ValueError(f"{' '.join(unknown)}: not an option of loadtest or locust; see --help")
    if names := set(known.user_classes) - set(USERS["both"]):
        raise ValueError(f"{' '.join(sorted(names))}: not a command of loadtest: run, capacity, null, report")


def _locust(options: argparse.Namespace, of_locust: Sequence[str]) -> int:
    """Hand this process over to locust, which ends it."""
    passed = dict(vars(options))
    protocol = passed.pop("protocol")
    passed.pop("null_check")
    if passed["processes"] == 1:
        passed.pop("processes")
    passed["shape"] = options.shape or "steady"
    passed["levels"] = ",".join(f"{level:g}" for level in options.levels)
    sys.argv = ["locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", "--skip-log-setup"]
    sys.argv += [*as_words(passed), *of_locust, *USERS[protocol]]
    from locust.main import main as locust_main

    for number in SIGNALS:  # it has handlers of its own
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)
    locust_main()
    return 0  # not reached: locust ends the process with its own status


def null(arguments: Sequence[str]) -> int:
    parser = command_parser("null", f"Measure how many requests a second this machine can send, to {NULL_SERVER}.")
    add_image_options(parser)
    options = parser.parse_args(arguments)
    rate = null_rate(options.protocol, options.processes, image_options(options))
    print(f"{rate:.0f} requests/s to {NULL_SERVER}; up to {math.floor(rate / 2)}/s can be trusted")
    return 0


def report(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest report", description="Write an HTML report of saved results."
    )
    parser.add_argument("results", help="JSON file that --results has written")
    parser.add_argument("output", help="HTML file to write")
    options = parser.parse_args(arguments)
    from loadtest.report import render

    try:
        saved = json.loads(Path(options.results).read_text())
    except OSError as error:
        parser.error(f"{options.results} cannot be read ({error.strerror}): name a file that --results has written")
    except ValueError:
        parser.error(f"{options.results} is not JSON: name a file that --results has written")
    check_writable(options.output)
    try:
        page = render(saved["runs"], saved["capacity"]) if "runs" in saved else render([saved])
    except (KeyError, TypeError, IndexError):
        parser.error(f"{options.results} holds no results: name a file that --results has written")
    write_file(Path(options.output), page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
