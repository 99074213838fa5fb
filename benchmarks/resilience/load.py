"""Requests at a steady rate, each with a deadline, and their outcomes."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.latency import percentiles
from benchmarks.resilience.digits import Picture
from client import Classifier, ClassifierError

ANSWERED = "answered"


@dataclass(frozen=True)
class Record:
    seconds: float
    outcome: str
    detail: str = ""


class Load:
    """A context manager that sends a request every 1/`rate` seconds, whether or not earlier ones are answered.

    The classifiers take turns. A latency counts from when the request was due.
    """

    def __init__(self, classifiers: Sequence[Classifier], pictures: Sequence[Picture], rate: float, deadline: float):
        self.classifiers, self.pictures = classifiers, pictures
        self.rate, self.deadline = rate, deadline
        self.records: list[Record] = []
        self.sent = 0
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(int(2 * rate * deadline), thread_name_prefix="load")
        self._thread = threading.Thread(target=self._send)

    def summary(self) -> dict[str, Any]:
        """Counts by outcome; p50, p99 and longest milliseconds of the answers, None if there are none."""
        outcomes = Counter(record.outcome for record in self.records)
        seconds = [record.seconds for record in self.records if record.outcome == ANSWERED]
        return {
            "sent": self.sent,
            "answered_in_time": outcomes.pop(ANSWERED, 0),
            "failed": outcomes,
            "first_failures": [f"{r.outcome}: {r.detail}"[:200] for r in self.records if r.outcome != ANSWERED][:3],
            **percentiles(seconds),
            "longest_ms": round(max(seconds) * 1e3, 2) if seconds else None,
        }

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._pool.shutdown(wait=True)

    def _send(self) -> None:
        begun = time.perf_counter()
        while not self._stopping.wait(max(0.0, begun + self.sent / self.rate - time.perf_counter())):
            self._pool.submit(self._call, self.sent, begun + self.sent / self.rate)
            self.sent += 1

    def _call(self, number: int, due: float) -> None:
        classifier = self.classifiers[number % len(self.classifiers)]
        picture = self.pictures[number % len(self.pictures)]
        outcome, detail = ANSWERED, ""
        try:
            (best,) = classifier.classify(picture.data, top=1)
            if not picture.is_answered_by(best.label, best.probability):
                outcome, detail = "WrongAnswer", f"{best}, not {picture.label} {picture.probability}"
        except ClassifierError as error:
            outcome, detail = type(error).__name__, error.message
        except Exception as error:  # of any kind: it is not an answer
            outcome, detail = f"untyped {type(error).__name__}", str(error)
        seconds = time.perf_counter() - due
        if outcome == ANSWERED and seconds > self.deadline:
            outcome = "Late"
        self.records.append(Record(seconds, outcome, detail))
