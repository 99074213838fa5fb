"""What goes to a server and what comes back, whichever protocol carries it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from client._prediction import Prediction


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
        class_map: whether the map of the answer is asked for too.
        region: the shared memory that holds the image; None: it goes in the message.
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
    """An eighth of the seconds that are left: the server's steps have two queues. A request that is turned away leaves
    time to ask again, and one that leaves both queues has three quarters to be answered in."""
    return left / 8


def microseconds(seconds: float) -> int:
    """As the server counts; 0 would mean no limit to it."""
    return max(1, int(seconds * 1e6))


@dataclass(frozen=True, slots=True)
class Answer:
    """`predictions`, best first, and `class_map` [h,w] float32 where one was asked for."""

    predictions: Sequence[Prediction]
    class_map: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What `explain` returns.

    Attributes:
        predictions: as `classify` returns them.
        class_map: [h,w] float32: the evidence for the best class at each position of the centre crop that the
            model sees; its mean is that class's logit.
    """

    predictions: list[Prediction]
    class_map: np.ndarray


@dataclass(frozen=True, slots=True)
class Share:
    """A message to a server on this host about shared memory.

    Attributes:
        verb: show a region, take it back, or ask which ones the server has.
        region: its name.
        size: in bytes, where it is shown.
        token: the server's, for shared memory.
        timeout: seconds.
    """

    verb: Literal["register", "unregister", "status"]
    region: str
    size: int
    token: str
    timeout: float
