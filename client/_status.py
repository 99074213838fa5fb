"""A server's own account of itself, from its statistics."""

from dataclasses import dataclass
from typing import Any

from client._errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Times:
    """`count` requests that took `seconds` together."""

    count: int
    seconds: float

    @property
    def mean_ms(self) -> float:
        """Milliseconds a request; 0 where there was none."""
        return 1e3 * self.seconds / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One version of one model since the server's start.

    Attributes:
        inferences, executions: images, and batches that they were computed in (0 for an ensemble).
        success, failure: whole requests; failure counts those that were turned away too.
        queue, compute_input, compute, compute_output: where a successful request's time went (0 for an ensemble's
            own part: its steps have them).
    """

    name: str
    version: str
    inferences: int
    executions: int
    success: Times
    failure: Times
    queue: Times
    compute_input: Times
    compute: Times
    compute_output: Times


@dataclass(frozen=True, slots=True)
class ServerStatus:
    url: str
    name: str
    version: str
    ready: bool
    models: list[ModelStatus]


def parse_status(url: str, metadata: dict[str, Any], ready: bool, statistics: dict[str, Any]) -> ServerStatus:
    """Of the server's JSON. Raises `ProtocolError`."""
    try:
        models = [_model(entry) for entry in statistics.get("model_stats", ())]
        models.sort(key=lambda model: (model.name, model.version))
        return ServerStatus(url, str(metadata["name"]), str(metadata["version"]), ready, models)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ProtocolError(f"the server's statistics cannot be read ({error!r}): check the address [{url}]") from None


def _model(entry: dict[str, Any]) -> ModelStatus:
    times = entry.get("inference_stats", {})

    def read(name: str) -> Times:
        value = times.get(name, {})
        return Times(int(value.get("count", 0)), int(value.get("ns", 0)) / 1e9)

    return ModelStatus(
        name=str(entry["name"]),
        version=str(entry.get("version", "")),
        inferences=int(entry.get("inference_count", 0)),
        executions=int(entry.get("execution_count", 0)),
        success=read("success"),
        failure=read("fail"),
        queue=read("queue"),
        compute_input=read("compute_input"),
        compute=read("compute_infer"),
        compute_output=read("compute_output"),
    )
