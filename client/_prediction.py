"""The answer's type, and how tritonserver's classification extension writes it."""

import math
from dataclasses import dataclass

from client._errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of the answer.

    Attributes:
        label: the class's name; its index as text where the model has no labels.
        index: the class's position in the model's output, from 0.
        probability: 0 to 1, to six decimals (as tritonserver writes it).
    """

    label: str
    index: int
    probability: float


def parse_predictions(entries: list[str]) -> list[Prediction]:
    """``"value:index"`` or ``"value:index:label"`` each -> most probable first. Raises `ProtocolError`."""
    predictions = []
    for entry in entries:
        value, *rest = entry.split(":", 2)  # a label may hold colons
        try:
            index = int(rest[0])
            label = rest[1] if len(rest) == 2 else str(index)
            predictions.append(Prediction(label, index, float(value)))
        except (IndexError, ValueError):
            raise ProtocolError(f'the server answered {entry!r}, not "value:index:label": check the model') from None
        if not math.isfinite(predictions[-1].probability):  # of no order, and none of JSON's numbers
            remedy = "check its weights, and what its precision can hold"
            raise ProtocolError(f"the model answered {entry!r}, which is no probability: {remedy}")
    return sorted(predictions, key=lambda p: (-p.probability, p.index))
