"""Requests to a server and its answers, independent of the protocol."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from client._errors import ProtocolError
from client._prediction import Prediction

INPUT, OUTPUT = "image", "probabilities"
EVIDENCE = ("class_map", "crop")  # further outputs, if a map is asked for
SHARED_MEMORY_HEADER = "widefield-shared-memory"


@dataclass(frozen=True, slots=True)
class Request:
    """One image on its way to one server.

    Attributes:
        model: the model's name on the server.
        image: encoded bytes.
        top: how many classes are asked for.
        timeout: the seconds that are left for this attempt.
        queue_timeout: the seconds that it may wait in the queue of each of the server's steps.
        id: what the server's log calls it.
        class_map: whether the class map is asked for too.
        region: the name of the shared memory that holds the image; None: the image goes in the message.
    """

    model: str
    image: bytes
    top: int
    timeout: float
    id: str
    class_map: bool = False
    queue_timeout: float = 5.0
    region: str | None = None


def queue_timeout(left: float) -> float:
    """The seconds that a request may wait in each of the server's two queues: an eighth of those that are `left`.

    A rejected request then leaves time for a retry, and one that passes both queues has three quarters of the time.
    """
    return left / 8


def microseconds(seconds: float) -> int:
    """Convert to the server's unit, at least 1: to the server 0 means no limit."""
    return max(1, int(seconds * 1e6))


class Crop(NamedTuple):
    """The part of an upright picture that the model sees, as shares of width and height; beyond 0 and 1 is padding."""

    left: float = 0.0
    upper: float = 0.0
    right: float = 1.0
    lower: float = 1.0


WHOLE = Crop()


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a `Request`: `predictions`, best first; if asked for, `class_map` [h,w] float32 and its `crop`."""

    predictions: Sequence[Prediction]
    class_map: np.ndarray | None = None
    crop: Crop = WHOLE


def answer_of(
    predictions: Sequence[Prediction], class_map: np.ndarray | None = None, crop: np.ndarray | None = None
) -> Answer:
    """Build an `Answer` from the received arrays.

    Raises `ValueError` unless the map is [h,w] and the crop, [4], overlaps the picture.
    """
    if class_map is None or crop is None:
        return Answer(predictions)
    if class_map.ndim != 2 or crop.shape != (4,) or not np.isfinite(crop).all():
        raise ValueError
    left, upper, right, lower = map(float, crop)
    if max(left, 0) >= min(right, 1) or max(upper, 0) >= min(lower, 1):
        raise ValueError
    return Answer(predictions, class_map, Crop(left, upper, right, lower))


def incomplete(request: Request, url: str) -> ProtocolError:
    wanted = f"{OUTPUT}, {' and '.join(EVIDENCE)}" if request.class_map else OUTPUT
    return ProtocolError(f"the answer holds no {wanted}: check the model [{request.model} at {url}]")


@dataclass(frozen=True, slots=True)
class Explanation:
    """The result of `explain`.

    Attributes:
        predictions: as `classify` returns them.
        class_map: [h,w] float32: the evidence for the best class at each position of `crop`; its mean is that
            class's logit.
        crop: the part of the picture that the model sees.
    """

    predictions: list[Prediction]
    class_map: np.ndarray
    crop: Crop = WHOLE


@dataclass(frozen=True, slots=True)
class Share:
    """A message to a server on this host about shared memory.

    Attributes:
        verb: register a region, unregister it, or list the server's regions.
        region: its name.
        size: in bytes, to register it.
        token: the server's shared-memory token.
        timeout: seconds.
    """

    verb: Literal["register", "unregister", "status"]
    region: str
    size: int
    token: str
    timeout: float
