"""A long run of small requests, good ones and broken ones: does memory grow, does an answer change?"""

import contextlib
import itertools
import os
import statistics
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.latency import percentiles
from benchmarks.resilience.digits import Picture, pictures
from benchmarks.resilience.footprint import backends_of, tritonserver_of
from client import Classifier, ClassifierError, InvalidImageError
from server import TritonServer

CALLERS = 4  # half of them over gRPC, half over HTTP
BROKEN_EVERY = 100  # one request in so many is no image, or half of one
WARM_UP = 0.1  # of the requests
WINDOW = 0.1  # memory is the mean over this share of the requests, after warm-up and at the end
SAMPLE_SECONDS = 0.2


@dataclass(frozen=True)
class Sample:
    done: int
    rss_mib: float
    descriptors: int


class Tally:
    """Counts of all callers; `numbers` gives out the requests' numbers."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.numbers = itertools.count()
        self.outcomes: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.lock = threading.Lock()

    def note(self, outcome: str, seconds: float) -> None:
        with self.lock:
            self.outcomes[outcome] += 1
            self.seconds.append(seconds)


def soak(repository: Path, requests: int) -> dict[str, Any]:
    with TritonServer(repository, start_timeout=300.0, probe_timeout=60.0) as server:
        expected = pictures(server.grpc_url)
        tally, samples = Tally(requests), []
        started = time.perf_counter()
        with ThreadPoolExecutor(CALLERS) as pool:
            calls = [
                pool.submit(_call, protocol, url, expected, tally)
                for protocol, url in itertools.islice(
                    itertools.cycle([("grpc", server.grpc_url), ("http", server.http_url)]), CALLERS
                )
            ]
            while not all(call.done() for call in calls):
                samples += _sample(len(tally.seconds))
                if len(samples) % 100 == 1:
                    print(f"soak: {samples[-1]}, {dict(tally.outcomes)}", flush=True)
                time.sleep(SAMPLE_SECONDS)
            for call in calls:
                call.result()
        elapsed = time.perf_counter() - started
        samples += _sample(len(tally.seconds))
        restarts = server.restarts
    return {
        "requests": requests,
        "callers": CALLERS,
        "outcomes": tally.outcomes,
        "requests_per_s": round(requests / elapsed, 1),
        **percentiles(tally.seconds),
        "restarts": restarts,
        **growth(samples, requests),
    }


def growth(samples: list[Sample], requests: int) -> dict[str, Any]:
    """Memory of tritonserver and its Python processes after warm-up and at the end, and the growth in percent."""
    first = [s for s in samples if WARM_UP * requests <= s.done < (WARM_UP + WINDOW) * requests]
    last = [s for s in samples if s.done >= (1 - WINDOW) * requests]
    if not first or not last:
        raise ValueError(f"{requests} requests are too few to see growth: give more")
    before, after = (statistics.fmean(s.rss_mib for s in part) for part in (first, last))
    return {
        "rss_mib": {"after_warm_up": round(before, 1), "at_the_end": round(after, 1)},
        "rss_growth_percent": round(100 * (after / before - 1), 2),
        "descriptors": {"after_warm_up": first[0].descriptors, "at_the_end": last[-1].descriptors},
    }


def _call(protocol: str, url: str, expected: list[Picture], tally: Tally) -> None:
    with Classifier(url, protocol=protocol, timeout=60.0) as classifier:
        for number in tally.numbers:
            if number >= tally.requests:
                return
            picture = expected[number % len(expected)]
            broken = number % BROKEN_EVERY == 0
            data = (b"no image", picture.data[: len(picture.data) // 2])[number // BROKEN_EVERY % 2]
            begun = time.perf_counter()
            try:
                (best,) = classifier.classify(data if broken else picture.data, top=1)
                right = not broken and picture.is_answered_by(best.label, best.probability)
                outcome = "answered" if right else "answered wrongly"
            except InvalidImageError as error:
                outcome = "broken and refused" if broken else type(error).__name__
            except ClassifierError as error:
                outcome = type(error).__name__
            tally.note(outcome, time.perf_counter() - begun)


def _sample(done: int) -> list[Sample]:
    """Take a sample; returns an empty list while tritonserver restarts."""
    with contextlib.suppress(psutil.Error):
        if (server := tritonserver_of(os.getpid())) is not None:
            there = [server, *backends_of(os.getpid())]
            rss = sum(process.memory_info().rss for process in there)
            return [Sample(done, round(rss / 2**20, 2), sum(process.num_fds() for process in there))]
    return []
