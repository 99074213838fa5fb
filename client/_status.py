"""A server's status and statistics, as the server itself reports them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from client._errors import ClassifierError, ProtocolError

STEPS = ("queue", "compute_input", "compute", "compute_output")


@dataclass(frozen=True, slots=True)
class Times:
    """`count` requests that took `seconds` together."""

    count: int
    seconds: float

    def plus(self, other: "Times", sign: int = 1) -> "Times":
        return Times(self.count + sign * other.count, self.seconds + sign * other.seconds)

    @property
    def mean_ms(self) -> float:
        """Milliseconds a request; 0 where there was none."""
        return 1e3 * self.seconds / self.count if self.count else 0.0


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """The statistics of one version of one model since the server's start.

    Attributes:
        inferences, executions: images, and batches that they were computed in.
        success, failure: whole requests; failure includes rejected ones, and counts an ensemble's twice.
        queue, compute_input, compute, compute_output: where a successful request's time went. An ensemble's compute
            is the sum of its steps'; queues are counted at the steps only.
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

    def since(self, before: "ModelStatus | None") -> "ModelStatus":
        """The difference to `before`; everything if that is None, or if counts have fallen: the model was reloaded."""
        if before is None:
            return self
        counts = {name: getattr(self, name) - getattr(before, name) for name in ("inferences", "executions")}
        times = {name: getattr(self, name).plus(getattr(before, name), -1) for name in ("success", "failure", *STEPS)}
        fallen = any(each < 0 for each in counts.values()) or any(t.count < 0 or t.seconds < 0 for t in times.values())
        return self if fallen else replace(self, **counts, **times)


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """A server's name, version and readiness, and what each version of each model has counted since its start."""

    url: str
    name: str
    version: str
    ready: bool
    models: list[ModelStatus]

    def since(self, before: "ServerStatus") -> list[ModelStatus]:
        """The difference to `before` for each model that is still there."""
        earlier = {(model.name, model.version): model for model in before.models}
        return [model.since(earlier.get((model.name, model.version))) for model in self.models]


def parse_status(url: str, metadata: dict[str, Any], ready: bool, statistics: dict[str, Any]) -> ServerStatus:
    """Parse the server's JSON. Raises `ProtocolError`."""
    try:
        models = [_model(entry) for entry in statistics.get("model_stats", ())]
        models.sort(key=lambda model: (model.name, model.version))
        return ServerStatus(url, str(metadata["name"]), str(metadata["version"]), ready, models)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise ProtocolError(f"the server's statistics cannot be read ({error!r}): check the address [{url}]") from None


def step_times(
    before: "Sequence[ServerStatus | ClassifierError]", after: "Sequence[ServerStatus | ClassifierError]"
) -> dict[str, dict[str, Times]]:
    """Return the times of each model's `STEPS` between two calls of `status()`, summed over versions and servers.

    Servers that did not answer both calls and models without requests in between are left out. The times of a model
    that was reloaded (the server restarted) count from its reload. See `ModelStatus` for those of an ensemble.
    """
    sums: dict[str, dict[str, Times]] = {}
    for one, other in zip(before, after, strict=True):
        if isinstance(one, ServerStatus) and isinstance(other, ServerStatus):
            for model in other.since(one):
                times = sums.setdefault(model.name, dict.fromkeys(STEPS, Times(0, 0.0)))
                for step in STEPS:
                    times[step] = times[step].plus(getattr(model, step))
    return {name: times for name, times in sums.items() if times["compute"].count}


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
