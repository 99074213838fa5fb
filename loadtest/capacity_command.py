"""`python -m loadtest capacity`: the search for the capacity, over real runs."""

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from client.options import add_number
from loadtest.capacity import find_capacity
from loadtest.null_check import NULL_SERVER, null_rate, run_load
from loadtest.options import (
    USERS,
    add_file_options,
    add_server_options,
    as_words,
    at_least_one,
    check_target,
    check_writable,
    command_parser,
    image_options,
    not_negative,
    positive,
    server_address,
    share,
    write_files,
)
from loadtest.results import met, rate_to_offer, requests_needed, silent
from loadtest.slo import load_slo


def capacity(arguments: Sequence[str]) -> int:
    parser = command_parser(
        "capacity",
        "Find the highest rate of random (Poisson) requests at which the objectives hold.\n"
        "Exit status: 0 found; 1 no rate holds, no answer came or a file was not written; 2 wrong usage; stopped: "
        "130 Ctrl-C, 143 SIGTERM.",
    )
    add_server_options(parser)
    parser.add_argument("--slo", required=True, metavar="FILE", help="TOML file of objectives")
    add_number(parser, "--seconds", positive, 20.0, "SECONDS", "least duration of each run")
    add_number(parser, "--warm-up", not_negative, 3.0, "SECONDS", "time before that is not counted")
    most = "runs at each rate, most of which must meet the objectives"
    add_number(parser, "--repeats", at_least_one, 3, "N", most)
    add_number(parser, "--precision", share, 0.05, "SHARE", "precision of the rate that is found, as a share of it")
    parser.add_argument(
        "--from-rate",
        type=positive,
        metavar="PER_S",
        help="first rate to try (default: that of a closed loop of 8 users)",
    )
    add_file_options(parser)
    options = parser.parse_args(arguments)
    check_writable(options.report, options.results)
    check_target(options)
    slo, protocols = load_slo(options.slo), len(USERS[options.protocol])
    percentiles = [name for name in slo.get("latency_ms", {}) if name != "max"]
    requests = max(map(requests_needed, percentiles), default=1) * protocols
    per_s = slo.get("goodput", {}).get("per_s", 0.0)  # for each protocol
    names = ["protocol", "host", "grpc_host", "images", "sizes", "model", "top", "request_timeout", "header"]
    names += ["tls", "tls_root", "tls_certificate", "tls_key"]
    target = as_words({name: getattr(options, name) for name in names})
    if options.processes > 1:
        target += ["--processes", str(options.processes)]
    null = null_rate(options.protocol, options.processes, image_options(options))
    print(f"load generator: {null:.0f} requests/s to {NULL_SERVER}; rates up to half of it are tried", flush=True)

    alone = ["--users", str(protocols), "--seconds", "5", "--warm-up", "0"]

    def at_rate(rate: float) -> dict[str, Any]:
        seconds = max(options.seconds, 1.2 * requests / rate)  # enough answers for the percentile to mean something
        load = ["--rate", repr(rate), "--seconds", repr(seconds), "--warm-up", str(options.warm_up)]
        return run_load([*target, *load, "--slo", options.slo, "--null-rate", repr(null)])

    def tell(result: dict[str, Any]) -> None:
        phase = result["phases"][-1]
        missed = sorted({line["objective"] for line in phase["slo"] if not line["met"]})
        outcome = "missed " + ", ".join(missed) if missed else "met" if met(result) else "cut short"
        again = " (the sender was late: made again)" if result["made_again"] else ""
        print(f"  {phase['level']:8.1f}/s: {outcome}{again}{_failures(phase)}", flush=True)
        # Too high a rate may leave all unanswered; a server that is gone says nothing about its capacity.
        if silent(result) and (gone := silent(run_load([*target, *alone]))):
            raise RuntimeError(_unanswered(gone, options))

    first = options.from_rate
    if first is None:
        closed = run_load([*target, "--users", "8", "--seconds", "5", "--warm-up", "2"])
        first = sum(row["answered_per_s"] for row in closed["phases"][-1]["protocols"].values())
        if never := silent(closed):
            raise RuntimeError(_unanswered(never, options))
        print(f"closed loop, 8 users: {first:.1f} answers/s", flush=True)
    first = max(first, protocols * rate_to_offer(per_s, options.seconds))
    search = find_capacity(at_rate, first, null / 2, options.repeats, options.precision, protocols * per_s, tell)
    found = {"rate": search.capacity, "limited": search.limited, "tried": sorted(search.tried.items())}
    limit = " or more: the load generator is the limit" if search.limited else ""
    print(f"capacity: {search.capacity:.1f} requests/s{limit}", flush=True)
    files = {options.results: json.dumps({"capacity": found, "runs": search.results}, indent=1)}
    if options.report:
        from loadtest.report import render  # matplotlib, only where it is asked for

        files[options.report] = render(search.results, found)
    return 0 if write_files(files) and search.capacity else 1


def _unanswered(names: Sequence[str], options: argparse.Namespace) -> str:
    """The message for protocols (`names`, as in the results) over which no request was answered."""
    places = [
        f"over {name} at {server_address(name.lower(), options.host, options.grpc_host)} "
        f"(--{'grpc-host' if name == 'gRPC' else 'host'})"
        for name in names
    ]
    return f"no request is answered {' and '.join(places)}: is the server there?"


def _failures(phase: Mapping[str, Any]) -> str:
    """How many requests failed, and the most frequent error."""
    errors: Counter[str] = Counter()
    for row in phase["protocols"].values():
        errors.update(row["errors"])
    return f"; {errors.total()} failed: {errors.most_common(1)[0][0]}" if errors else ""
