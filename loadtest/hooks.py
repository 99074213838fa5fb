"""Locust's event listeners: options, images, schedule, workers' results, the server's statistics, the verdict."""

import contextlib
import json
import math
import signal
import sys
import time
from argparse import ArgumentParser
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import gevent
from locust import events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from client import ClassifierError, ServerStatus
from loadtest import results
from loadtest.images import load_images
from loadtest.options import (
    PEAK,
    SECONDS,
    SIGNALS,
    WARM_UP,
    add_image_options,
    add_load_options,
    add_target_options,
    check_shape,
    check_writable,
    write_files,
)
from loadtest.recorder import Recorder
from loadtest.schedule import Schedule
from loadtest.shapes import Phase, plan, whole_users
from loadtest.slo import Slo, load_slo
from loadtest.users import ClassifierUser, Clock, address, open_classifier

STATISTICS_SECONDS = 5.0  # time limit for the server's statistics


def install() -> None:
    """Add the listeners to locust's events; to be called once per process."""
    events.init_command_line_parser.add_listener(add_options)
    events.init.add_listener(LoadTest.begin)


def add_options(parser: ArgumentParser) -> None:
    add_target_options(parser)
    add_load_options(parser)
    # Load the images now, which takes seconds: before locust forks, and before a worker reports that it is ready.
    early = ArgumentParser(add_help=False, allow_abbrev=False)
    add_image_options(early)
    options, others = early.parse_known_args()
    if not {"-h", "--help"} & set(others):
        with contextlib.suppress(OSError, ValueError):  # reported when the test begins
            _images(options.images, options.sizes)


@lru_cache
def _images(folder: str, sizes: str) -> list[bytes]:
    return load_images(Path(folder) if folder else None, sizes)


class LoadTest:
    """One process's share of a test."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.options = cast(Any, environment.parsed_options)
        self.slo: Slo | None = load_slo(self.options.slo) if self.options.slo else None
        check_writable(self.options.report, self.options.results)
        self.kinds = cast("list[type[ClassifierUser]]", environment.user_classes)
        self.protocol = max(kind.protocol for kind in self.kinds)  # that asks for statistics: HTTP, if both
        self.address = address(self.protocol, environment)
        self._prepare()
        self.server: list[ServerStatus | ClassifierError] = []  # at the start of each phase, and at the end
        self.ended: float | None = None
        ClassifierUser.images = _images(self.options.images, self.options.sizes)
        for kind in self.kinds:  # last: gRPC's threads complain if the process exits after it was opened
            open_classifier(kind.protocol, environment).close()  # raises if it cannot be opened

    @classmethod
    def begin(cls, environment: Environment, **_: Any) -> None:
        try:
            test = cls(environment)
        except (OSError, ValueError) as error:
            print(f"loadtest: {error}", file=sys.stderr)
            sys.exit(2 if isinstance(error, ValueError) else 1)
        environment.events.test_start.add_listener(test.on_test_start)
        environment.events.test_stop.add_listener(test.on_test_stop)
        runner: Any = environment.runner
        if isinstance(runner, WorkerRunner):
            environment.events.report_to_master.add_listener(
                lambda client_id, data: data.update(loadtest=test.recorder.take())
            )
        else:
            # Ctrl-C must interrupt locust's main greenlet, not the user that happens to run.
            loop, main = gevent.get_hub().loop, gevent.getcurrent()
            numbers = [signal.SIGINT]
            if environment.shape_class is not None:  # until it ends locust has no handler: workers would keep running
                numbers += [each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN]  # nohup
            for number in numbers:
                gevent.signal_handler(number, loop.run_callback, main.throw, KeyboardInterrupt)
            loop.update_now()  # else the time that has passed would count as the run's
            if isinstance(runner, MasterRunner):
                environment.events.worker_report.add_listener(
                    lambda client_id, data: test.recorder.merge(data.get("loadtest", []))
                )
                runner.register_message("loadtest", lambda msg, **_: test.recorder.merge(msg.data["cells"]))
            environment.events.quitting.add_listener(test.on_quitting)

    def _prepare(self) -> None:
        self.phases = self._plan()
        self.recorder = ClassifierUser.recorder = Recorder(self.phases)
        ClassifierUser.phases = self.phases if self.options.rate else []

    def _plan(self) -> list[Phase]:
        options, environment = self.options, self.environment
        check_shape(options)
        if options.shape is None and options.rate is None:
            for name in ("seconds", "warm_up"):
                if getattr(options, name):
                    raise ValueError(f"--{name.replace('_', '-')} is for --shape or --rate: give one, or leave it out")
            return [Phase("run", options.num_users or 0, 0.0, math.inf)]
        options.seconds = options.run_time or options.seconds or SECONDS
        warm_up = WARM_UP if options.warm_up is None else options.warm_up
        level = options.rate or options.num_users or len(environment.user_classes)
        phases = plan(options.shape or "steady", level, options.seconds, warm_up, options.levels, options.peak or PEAK)
        # Requests in flight when the time is over are still waited for.
        environment.stop_timeout = max(environment.stop_timeout, options.request_timeout + 1)
        if not isinstance(environment.runner, WorkerRunner):
            if not options.rate:
                phases = whole_users(phases, len(environment.user_classes))
            workers = options.expect_workers if isinstance(environment.runner, MasterRunner) else 1
            options.senders = workers * len(environment.user_classes) if options.rate else None  # sent to the workers
            grace = 2.0 if isinstance(environment.runner, MasterRunner) else 0.5 if options.rate else 0.0
            environment.shape_class = Schedule(phases, options.senders, grace)
            environment.shape_class.runner = environment.runner
        return phases

    def on_test_start(self, environment: Environment, **_: Any) -> None:
        if not isinstance(environment.runner, WorkerRunner):
            self.asking = open_classifier(self.protocol, environment)
            self.server = [self._status()]
            gevent.spawn(self._watch_server)
        if isinstance(environment.runner, WorkerRunner):
            self._prepare()  # again: the master's options have arrived
        self.recorder.cells.clear()
        self.ended = None
        ClassifierUser.clock = Clock()
        if environment.shape_class is not None:
            environment.shape_class.reset_time()

    def on_test_stop(self, **_: Any) -> None:
        self.ended = ClassifierUser.clock.now()
        if isinstance(self.environment.runner, WorkerRunner):
            # Send the remaining results before the worker reports that it has stopped. Its users have finished, but
            # locust would still sleep for their stop timeout, and then find no master that tells it to end.
            self.environment.runner.send_message("loadtest", {"cells": self.recorder.take()})
            self.environment.stop_timeout = 0.0
        elif self.server:  # the test has begun
            self.server = [*self.server[: len(self.phases)], self._status()]
            self.asking.close()

    def _status(self) -> ServerStatus | ClassifierError:
        return self.asking.status(STATISTICS_SECONDS)[0]

    def _watch_server(self) -> None:
        for phase in self.phases[1:]:
            gevent.sleep(max(0.0, phase.start - ClassifierUser.clock.now()))
            if self.ended is not None:
                return
            self.server.append(self._status())

    def on_quitting(self, environment: Environment, **_: Any) -> None:
        result = results.summarise(self)
        result["finished"] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        if self.slo is not None:
            environment.process_exit_code = 0 if results.met(result) else 1
        elif results.silent(result):
            environment.process_exit_code = 1
        results.print_result(result, stderr=self.options.json)  # locust's --json writes to standard output
        files = {self.options.results: json.dumps(result, indent=1)}
        if self.options.report:
            from loadtest.report import render  # matplotlib, only where it is asked for

            files[self.options.report] = render([result])
        if not write_files(files):
            environment.process_exit_code = 1
