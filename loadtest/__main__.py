"""Load tests of a running server: run, capacity, null, report.

    python -m loadtest --protocol both --users 4 --seconds 10
    python -m loadtest run --rate 40 --shape step --slo slo.toml --report report.html
    python -m loadtest capacity --slo slo.toml --report report.html
    python -m loadtest null
    python -m loadtest report results.json report.html

`run` may be left out, and takes locust's own options too (--processes 2, --master, --worker, --csv ...).
Exit status: 0 good; 1 an objective was missed, or without --slo a request was not answered; 2 wrong usage; 3 the load
generator cannot send twice the rate that was asked for; 130 Ctrl-C, but for `run`, which then shows what it has.
"""

import argparse
import json
import math
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.capacity import find_capacity
from loadtest.images import parse_sizes
from loadtest.null_check import null_rate, run_load
from loadtest.options import PEAK, add_load_options, add_target_options, check_writable, positive
from loadtest.results import met, requests_needed, silent
from loadtest.slo import load_slo

USERS = {
    "grpc": ["GrpcClassifierUser"],
    "http": ["HttpClassifierUser"],
    "both": ["GrpcClassifierUser", "HttpClassifierUser"],
}
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
SIGNALS = (signal.SIGTERM, signal.SIGHUP)
NULL_EXPLAINED = "a server that does nothing, in a process of its own on this machine"


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"run": run, "capacity": capacity, "null": null, "report": report}
    command = commands[arguments.pop(0)] if arguments and arguments[0] in commands else run
    for number in SIGNALS:
        if signal.getsignal(number) == signal.SIG_DFL:  # nohup has SIGHUP ignored
            signal.signal(number, _interrupt)  # or what was started would go on
    try:
        return command(arguments)
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error)
        print(text if text.startswith("loadtest: ") else f"loadtest: {text}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print("loadtest: stopped", file=sys.stderr)
        return 130


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m loadtest {command}",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--protocol", choices=sorted(USERS), default="both", help="default: both, half of the load each"
    )
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that send, on this machine (default: 1)")
    return parser


def run(arguments: Sequence[str]) -> int:
    parser = _parser("run", __doc__ or "")
    parser.add_argument("-u", "--users", type=int, metavar="N", help="closed loop: users in all (default: 4)")
    parser.add_argument("--host", "-H", default="127.0.0.1:8000", metavar="HOST:PORT", help="default: 127.0.0.1:8000")
    parser.add_argument(
        "--null-check",
        choices=("refuse", "warn", "off"),
        default="refuse",
        help=f"how much does this machine send to {NULL_EXPLAINED}? Of an open loop twice the rate (default: refuse)",
    )
    add_target_options(parser)
    parser.add_argument("--tls-key", metavar="FILE")
    add_load_options(parser)
    options, of_locust = parser.parse_known_args(arguments)
    if options.users is not None and options.rate is not None:
        parser.error("give --users (closed loop) or --rate (open loop), not both")
    if options.levels and options.shape != "step":
        parser.error("--levels belong to --shape step")
    if options.tls_key and not options.tls_certificate:
        parser.error("--tls-key belongs to --tls-certificate")
    peak = _peak(options)
    users = 4 if options.users is None else options.users
    if options.rate is None and not options.levels and users < len(USERS[options.protocol]):
        parser.error("give at least one user for each protocol")
    if of_locust:
        _check_locust_options(of_locust)
    check_writable(options.report, options.results)
    if options.slo:
        load_slo(options.slo)
    if options.sizes:
        parse_sizes(options.sizes)
    if options.null_check != "off" and "--worker" not in of_locust:
        options.null_rate = null_rate(options.protocol, max(1, options.processes), _image_options(options))
        print(f"loadtest: {options.null_rate:.0f} requests/s go to {NULL_EXPLAINED}", file=sys.stderr)
        if options.rate is not None and peak > options.null_rate / 2:
            print(
                f"loadtest: {peak:g} requests/s are more than half of the {options.null_rate:.0f} that this load "
                f"generator sends to {NULL_EXPLAINED}: use --processes, send from more machines, or --null-check warn",
                file=sys.stderr,
            )
            if options.null_check == "refuse":
                return 3
    return _locust(options, of_locust)


def _check_locust_options(words: Sequence[str]) -> None:
    """Before the seconds of the null check: exits with 2 where locust would."""
    from locust.argument_parser import get_parser

    parser = get_parser()
    add_target_options(parser)  # a locust.conf may hold them
    add_load_options(parser)
    unknown = [word for word in parser.parse_known_args(words)[1] if word.startswith("-")]
    if unknown:
        raise ValueError(f"{' '.join(unknown)}: no option of loadtest or of locust; see --help")


def _peak(options: argparse.Namespace) -> float:
    """The highest rate of an open loop."""
    if options.shape == "step" and options.levels:
        return max(options.levels)
    return (options.rate or 0.0) * (options.peak or PEAK if options.shape == "spike" else 1.0)


def _image_options(options: argparse.Namespace) -> list[str]:
    return ["--images", options.images, "--sizes", options.sizes]


def _words(options: Mapping[str, Any]) -> list[str]:
    """As they are written on a command line."""
    words = []
    for name, value in options.items():
        if value is not False and value not in (None, "", []):
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def _locust(options: argparse.Namespace, of_locust: Sequence[str]) -> int:
    """Gives this process to locust."""
    passed = dict(vars(options))
    protocol = passed.pop("protocol")
    passed.pop("null_check")
    if passed["processes"] == 1:
        passed.pop("processes")
    passed["shape"] = options.shape or "steady"
    if options.rate is None and options.users is None:
        passed["users"] = 4
    passed["levels"] = ",".join(f"{level:g}" for level in options.levels)
    sys.argv = ["locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary", "--skip-log-setup"]
    sys.argv += [*_words(passed), *of_locust, *USERS[protocol]]
    from locust.main import main as locust_main

    for number in SIGNALS:  # it has handlers of its own
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL)
    locust_main()
    return 0  # not reached: locust ends the process with its own status


def capacity(arguments: Sequence[str]) -> int:
    parser = _parser(
        "capacity",
        "The highest Poisson rate at which the objectives hold. Exit status: 0 found, 1 no rate holds, 2 wrong usage.",
    )
    parser.add_argument("--host", "-H", default="127.0.0.1:8000", metavar="HOST:PORT", help="default: 127.0.0.1:8000")
    parser.add_argument("--slo", required=True, metavar="FILE", help="objectives (TOML)")
    parser.add_argument("--seconds", type=positive, default=20.0, help="of each run, or more (default: 20)")
    parser.add_argument("--warm-up", type=positive, default=3.0, help="seconds before them (default: 3)")
    parser.add_argument("--repeats", type=int, default=3, help="most of them decide (default: 3)")
    parser.add_argument("--precision", type=positive, default=0.05, help="share of the rate (default: 0.05)")
    parser.add_argument("--from-rate", type=positive, help="first rate (default: what 8 users of a closed loop get)")
    parser.add_argument("--report", default="", metavar="FILE", help="write an HTML report")
    parser.add_argument("--results", default="", metavar="FILE", help="write all that was measured as JSON")
    add_target_options(parser)
    parser.add_argument("--tls-key", metavar="FILE")
    options = parser.parse_args(arguments)
    check_writable(options.report, options.results)
    if options.repeats < 1:
        parser.error("--repeats: 1 or more")
    percentiles = [name for name in load_slo(options.slo).get("latency_ms", {}) if name != "max"]
    requests = max(map(requests_needed, percentiles), default=1) * len(USERS[options.protocol])
    names = ["protocol", "host", "grpc_host", "images", "sizes", "model", "top", "request_timeout"]
    names += ["tls", "tls_root", "tls_certificate", "tls_key"]
    target = _words({name: getattr(options, name) for name in names})
    if options.processes > 1:
        target += ["--processes", str(options.processes)]
    null = null_rate(options.protocol, options.processes, _image_options(options))
    print(f"load generator: {null:.0f} requests/s to {NULL_EXPLAINED}; rates up to half of it are tried", flush=True)

    alone = ["--users", str(len(USERS[options.protocol])), "--seconds", "5", "--warm-up", "0"]

    def at_rate(rate: float) -> dict[str, Any]:
        seconds = max(options.seconds, 1.2 * requests / rate)  # enough for the percentile to be one
        load = ["--rate", repr(rate), "--seconds", f"{seconds:.1f}", "--warm-up", str(options.warm_up)]
        result = run_load([*target, *load, "--slo", options.slo, "--null-rate", repr(null)])
        phase = result["phases"][-1]
        missed = sorted({line["objective"] for line in phase["slo"] if not line["met"]})
        outcome = "missed " + ", ".join(missed) if missed else "met" if met(result) else "cut short"
        print(f"  {rate:8.1f}/s: {outcome}{_failures(phase)}", flush=True)
        # Too high a rate may leave all unanswered; a server that is gone says nothing about its capacity.
        if silent(result) and (gone := silent(run_load([*target, *alone]))):
            over = " and ".join(gone)
            raise RuntimeError(f"no request over {over} is answered any more: is the server at {options.host} there?")
        return result

    first = options.from_rate
    if first is None:
        closed = run_load([*target, "--users", "8", "--seconds", "5", "--warm-up", "2"])
        first = sum(row["answered_per_s"] for row in closed["phases"][-1]["protocols"].values())
        if not first:
            raise RuntimeError(f"no request was answered at {options.host}: is the server there?")
        print(f"closed loop, 8 users: {first:.1f} answers/s", flush=True)
    search = find_capacity(at_rate, first, null / 2, options.repeats, options.precision)
    found = {"rate": search.capacity, "limited": search.limited, "tried": sorted(search.tried.items())}
    limit = " or more: the load generator is the limit" if search.limited else ""
    print(f"capacity: {search.capacity:.1f} requests/s{limit}", flush=True)
    if options.results:
        Path(options.results).write_text(json.dumps({"capacity": found, "runs": search.results}, indent=1))
    if options.report:
        from loadtest.report import write_report

        write_report(search.results, Path(options.report), found)
    return 0 if search.capacity else 1


def _failures(phase: Mapping[str, Any]) -> str:
    """How many requests failed, and the most frequent error."""
    errors: Counter[str] = Counter()
    for row in phase["protocols"].values():
        errors.update(row["errors"])
    return f"; {errors.total()} failed: {errors.most_common(1)[0][0]}" if errors else ""


def null(arguments: Sequence[str]) -> int:
    parser = _parser("null", f"What this machine can send, shown against {NULL_EXPLAINED}.")
    parser.add_argument("--images", default="", metavar="DIR", help="images to send (default: photographs resized)")
    parser.add_argument("--sizes", default="", metavar="PIXELS:COUNT,...", help="as of run")
    options = parser.parse_args(arguments)
    rate = null_rate(options.protocol, options.processes, _image_options(options))
    print(f"{rate:.0f} requests/s to {NULL_EXPLAINED}; up to {math.floor(rate / 2)}/s can be trusted")
    return 0


def report(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest report", description="An HTML report of saved results.")
    parser.add_argument("results", help="what --results has written")
    parser.add_argument("output", help="the HTML file")
    options = parser.parse_args(arguments)
    from loadtest.report import write_report

    try:
        saved = json.loads(Path(options.results).read_text())
    except OSError as error:
        parser.error(f"{options.results} cannot be read ({error.strerror}): name a file that --results has written")
    except ValueError:
        parser.error(f"{options.results} is no JSON: name a file that --results has written")
    check_writable(options.output)
    try:
        if "runs" in saved:
            write_report(saved["runs"], Path(options.output), saved["capacity"])
        else:
            write_report([saved], Path(options.output))
    except (KeyError, TypeError, IndexError):
        parser.error(f"{options.results} holds no results: name a file that --results has written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
