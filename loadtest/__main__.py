"""A short closed-loop load test with a table at the end.

    python -m loadtest --protocol both --users 4 --seconds 10 --images DIR

Times are locust's: whole milliseconds below 100 ms, two significant digits above. Exit status: 0 every request was
answered, 1 at least one was not, or none was sent, 2 wrong usage.
"""

from loadtest.locustfile import (
    ClassifierUser,
    GrpcClassifierUser,
    HttpClassifierUser,
    add_arguments,
    read_images,
)  # patches first

# isort: split
import argparse
import contextlib
import sys
from collections.abc import Sequence

import gevent
from locust.env import Environment
from rich.console import Console
from rich.table import Table

USERS: dict[str, list[type[ClassifierUser]]] = {
    "grpc": [GrpcClassifierUser],
    "http": [HttpClassifierUser],
    "both": [GrpcClassifierUser, HttpClassifierUser],
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    environment = Environment(user_classes=list(USERS[options.protocol]), host=options.host, parsed_options=options)
    read_images(environment)
    runner = environment.create_local_runner()
    runner.start(options.users, spawn_rate=options.users)
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C: the table of what there is
        gevent.sleep(options.seconds)
    runner.quit()
    return _report(environment, {user.request_type for user in USERS[options.protocol]})


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description="Load on a running server.")
    parser.add_argument("--protocol", choices=sorted(USERS), default="both", help="default: both")
    parser.add_argument("--users", type=int, default=4, metavar="N", help="in all, shared by protocol (default: 4)")
    parser.add_argument("--seconds", type=float, default=10.0, help="default: 10")
    parser.add_argument("--host", default="127.0.0.1:8000", metavar="HOST:PORT", help="default: 127.0.0.1:8000")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.users < len(USERS[options.protocol]) or options.seconds <= 0:
        parser.error("give at least one user for each protocol, and more than 0 seconds")
    return options


def _report(environment: Environment, expected: set[str]) -> int:
    entries = sorted(environment.stats.entries.values(), key=lambda entry: entry.method)
    table = Table("protocol", "requests", "errors", "requests/s", "p50 ms", "p99 ms")
    for column in table.columns[1:]:
        column.justify = "right"
    for entry in entries:
        percentiles = (f"{entry.get_response_time_percentile(part):.0f}" for part in (0.5, 0.99))
        count, errors = str(entry.num_requests), str(entry.num_failures)
        table.add_row(entry.method, count, errors, f"{entry.total_rps:.1f}", *percentiles)
    Console().print(table)
    for error in environment.stats.errors.values():
        print(f"{error.occurrences} x {error.method}: {error.error}", file=sys.stderr)
    answered = {entry.method for entry in entries if entry.num_requests > entry.num_failures}
    for silent in sorted(expected - answered):
        print(f"{silent}: no request was answered", file=sys.stderr)
    return 1 if environment.stats.errors or expected != answered else 0


if __name__ == "__main__":
    sys.exit(main())
