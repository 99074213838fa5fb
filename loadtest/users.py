"""Locust users that send real images to a running server, through `client`, over gRPC and over HTTP."""

import random
import time
from typing import Any, ClassVar

import gevent
import grpc.experimental.gevent
from gevent.pool import Group
from locust import User, constant, task
from locust.env import Environment
from locust.user.users import LOCUST_STATE_STOPPING

from client import TLS, Classifier, ClassifierError, parse_headers
from loadtest.options import server_address
from loadtest.recorder import Recorder
from loadtest.shapes import Phase, arrivals

# Importing locust has patched the standard library for gevent; gRPC must be patched before its first channel.
grpc.experimental.gevent.init_gevent()

PAUSE_AFTER_ERROR = 0.1  # seconds: a refused connection must not turn a closed loop into a busy one
LOOK_UP = 0.2  # seconds: how often a sender that waits looks whether the test has ended


class Clock:
    """The seconds since this process's test began."""

    def __init__(self) -> None:
        self.origin = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self.origin


def address(protocol: str, environment: Environment) -> str:
    options: Any = environment.parsed_options
    return server_address(protocol, environment.host or "127.0.0.1:8000", options.grpc_host)


def open_classifier(protocol: str, environment: Environment) -> Classifier:
    """Create a client; nothing is sent yet. Raises `ValueError` for an option that cannot be used."""
    options: Any = environment.parsed_options
    root, certificate = options.tls_root, options.tls_certificate
    key = options.tls_key if certificate else None  # locust's own --tls-key is for its web page
    return Classifier(
        address(protocol, environment),
        protocol,
        options.model,
        options.request_timeout,
        retries=0,  # a request that is sent again would be counted once and take the time of two
        headers=parse_headers(options.header),
        tls=TLS(root, certificate, key) if root or certificate else options.tls,
    )


class ClassifierUser(User):
    """Base of both users. Closed loop: it sends the next image when it has the answer. Open loop: when it is due."""

    abstract = True
    wait_time = constant(0)
    protocol: ClassVar[str]
    request_type: ClassVar[str]
    images: ClassVar[list[bytes]] = []
    phases: ClassVar[list[Phase]] = []  # of an open loop
    recorder: ClassVar[Recorder]
    clock: ClassVar[Clock] = Clock()

    def on_start(self) -> None:
        self.top = self.environment.parsed_options.top
        self.source = random.Random()  # no seed: a repeated run must have other arrivals
        self.classifier = open_classifier(self.protocol, self.environment)

    def on_stop(self) -> None:
        self.classifier.close()

    @task
    def classify(self) -> None:
        if self.phases:
            options: Any = self.environment.parsed_options
            self.send_when_due(1 / options.senders)
        elif not self.send(self.clock.now()):
            time.sleep(PAUSE_AFTER_ERROR)

    def send_when_due(self, share: float) -> None:
        """Send each request in its own greenlet: a slow answer delays none of those that are due after it."""
        in_flight = Group()
        for due in arrivals(self.phases, share, self.source):
            while (rest := due - self.clock.now()) > 0:
                if self._state == LOCUST_STATE_STOPPING:
                    return self._finish(in_flight)
                gevent.sleep(min(rest, LOOK_UP))
            in_flight.spawn(self.send, due)
        while self._state != LOCUST_STATE_STOPPING and self.clock.now() < self.phases[-1].end + LOOK_UP:
            gevent.sleep(LOOK_UP)
        self._finish(in_flight)

    def _finish(self, in_flight: Group) -> None:
        in_flight.join()
        while self._state != LOCUST_STATE_STOPPING:  # locust would start the task again
            gevent.sleep(LOOK_UP)

    def send(self, due: float) -> bool:
        """Send an image; return whether it was answered. Latency counts from `due`, in seconds after the start."""
        image = self.source.choice(self.images)
        failure: Exception | None = None
        late = self.clock.now() - due
        try:
            self.classifier.classify(image, top=self.top)
        except ClassifierError as error:
            error.image = None  # so that equal errors are counted together
            failure = error
        except Exception as error:  # whatever it is, it is not an answer
            failure = error
        latency = 1000 * (self.clock.now() - due)  # ms
        error_text = None if failure is None else str(failure)
        self.recorder.record(due, self.request_type, latency, 1000 * late, error_text)
        self.environment.events.request.fire(
            request_type=self.request_type,
            name="classify",
            response_time=latency,
            response_length=0,
            exception=failure,
            context={},
        )
        return failure is None


class HttpClassifierUser(ClassifierUser):
    protocol = "http"
    request_type = "HTTP"


class GrpcClassifierUser(ClassifierUser):
    protocol = "grpc"
    request_type = "gRPC"
