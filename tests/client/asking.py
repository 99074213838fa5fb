"""One request straight to a transport."""

from collections.abc import Sequence

from client import Prediction, Request, Transport

CAT = [Prediction("cät", 1, 0.9)]  # what the stubs answer


def request(
    top: int = 1, timeout: float = 5, image: bytes = b"x", model: str = "m", class_map: bool = False
) -> Request:
    return Request(model, image, top, timeout, "id-1", class_map, queue_timeout=0.3125)


def ask(
    transport: Transport, top: int = 1, timeout: float = 5, image: bytes = b"x", model: str = "m"
) -> Sequence[Prediction]:
    return transport.infer(request(top, timeout, image, model)).predictions
