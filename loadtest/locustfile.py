"""Locust users that send real images to a running server, through `client`, over gRPC and over HTTP.

    locust -f loadtest/locustfile.py --headless -u 4 -r 4 -t 10s --host 127.0.0.1:8000

`--host` is the HTTP address; `--grpc-host` the gRPC one where it is not port 8001 of the same host. One protocol only:
write GrpcClassifierUser or HttpClassifierUser after the options. Locust exits 1 when a request failed.
"""

import argparse
import itertools
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import grpc.experimental.gevent
from locust import User, constant, events, task
from locust.env import Environment

sys.path.insert(0, str(Path(__file__).parents[1]))  # the locust command looks beside this file only

from client import Classifier, ClassifierError
from loadtest.images import load_images

# Importing locust has made the standard library cooperative; gRPC's core must be told before its first channel.
grpc.experimental.gevent.init_gevent()

PAUSE_AFTER_ERROR = 0.1  # seconds: a refused connection must not turn the users into a busy loop


@events.init_command_line_parser.add_listener
def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--grpc-host", default="", metavar="HOST:PORT", help="gRPC (default: --host's host, port 8001)")
    parser.add_argument(
        "--images", default="", metavar="DIR", help="pictures to send (default: digits, or photographs)"
    )
    parser.add_argument("--model", default="classifier", help="default: classifier")
    parser.add_argument("--top", type=int, default=5, metavar="N", help="classes asked for (default: 5)")
    parser.add_argument(
        "--request-timeout", type=float, default=10.0, metavar="SECONDS", help="for one request (default: 10)"
    )


@events.init.add_listener
def read_images(environment: Environment, **_: Any) -> None:
    """Before the first user starts. Ends the program where there is no image."""
    folder = environment.parsed_options.images  # type: ignore[union-attr]
    try:
        ClassifierUser.images = load_images(Path(folder) if folder else None)
    except OSError as error:
        sys.exit(f"loadtest: {error}")


class ClassifierUser(User):
    """Base of both; each user has a connection of its own and sends the next image when it has the answer."""

    abstract = True
    wait_time = constant(0)
    protocol: ClassVar[str]
    request_type: ClassVar[str]
    images: ClassVar[list[bytes]] = []
    numbers: ClassVar[Iterator[int]] = itertools.count()

    def on_start(self) -> None:
        options: Any = self.environment.parsed_options
        self.top = options.top
        self.sent = itertools.islice(itertools.cycle(self.images), next(self.numbers) % len(self.images), None)
        arguments = (self.address(), self.protocol, options.model, options.request_timeout)
        self.classifier = Classifier(*arguments, retries=0)  # what is refused is counted, not hidden

    def on_stop(self) -> None:
        self.classifier.close()

    def address(self) -> str:
        host = self.host or "127.0.0.1:8000"
        return host.removeprefix("http://").rstrip("/")

    @task
    def classify(self) -> None:
        image = next(self.sent)
        failure: Exception | None = None
        started = time.perf_counter()
        try:
            self.classifier.classify(image, top=self.top)
        except ClassifierError as error:
            error.image = None  # so that locust counts equal errors together
            failure = error
        except Exception as error:  # whatever it is, it is no answer
            failure = error
        elapsed = 1000 * (time.perf_counter() - started)  # ms
        self.environment.events.request.fire(
            request_type=self.request_type,
            name="classify",
            response_time=elapsed,
            response_length=0,
            exception=failure,
            context={},
        )
        if failure is not None:
            time.sleep(PAUSE_AFTER_ERROR)


class HttpClassifierUser(ClassifierUser):
    protocol = "http"
    request_type = "HTTP"


class GrpcClassifierUser(ClassifierUser):
    protocol = "grpc"
    request_type = "gRPC"

    def address(self) -> str:
        options: Any = self.environment.parsed_options
        return options.grpc_host or re.sub(r":\d+$", "", super().address()) + ":8001"
