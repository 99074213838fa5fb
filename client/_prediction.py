"""The type of an answer, and the parser for tritonserver's classification extension."""

import math
from dataclasses import dataclass

from client._errors import NotFiniteError, ProtocolError


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
    """Parse ``"value:index"`` or ``"value:index:label"`` entries; most probable first.

    Raises `ProtocolError` for others, and `NotFiniteError` for what is no probability.
    """
    predictions = []
    for entry in entries:
        value, *rest = entry.split(":", 2)  # a label may hold colons
        try:
            index = int(rest[0])
            label = rest[1] if len(rest) == 2 else str(index)
            predictions.append(Prediction(label, index, float(value)))
        except (IndexError, ValueError):
            raise ProtocolError(f'the server answered {entry!r}, not "value:index:label": check the model') from None
        if not math.isfinite(predictions[-1].probability):  # it cannot be sorted, or written as JSON
            remedy = "check its weights, and what its precision can hold"
            raise NotFiniteError(f"the model answered {entry!r}, which is no probability: {remedy}")
    return sorted(predictions, key=lambda p: (-p.probability, p.index))
