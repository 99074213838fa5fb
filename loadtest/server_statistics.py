"""The server's own statistics (KServe's statistics extension) of the time between two moments."""

from typing import Any

from client import STEPS, ClassifierError, ServerStatus


def difference(before: ServerStatus | ClassifierError, after: ServerStatus | ClassifierError) -> list[dict[str, Any]]:
    """For each model that answered in between: how often, and the mean milliseconds of each part."""
    if not (isinstance(before, ServerStatus) and isinstance(after, ServerStatus)):
        return []
    return [
        {
            "model": model.name,
            "version": model.version,
            "requests": model.success.count,
            "failed": model.failure.count,
            "batch": model.success.count / model.executions if model.executions else None,
            "total_ms": model.success.mean_ms,
            **{f"{step}_ms": getattr(model, step).mean_ms for step in STEPS},
        }
        for model in after.since(before)
        if model.success.count
    ]


def of_others(phase: dict[str, Any], model: str) -> str:
    """A warning if the server counted far more or fewer answers than this run had, else an empty string."""
    rows = phase["protocols"].values()
    asked, answered = (sum(row[name] for row in rows) for name in ("requests", "answered"))
    counted = sum(row["requests"] for row in phase["server"] if row["model"] == model)
    if not phase["server"] or 0.5 * answered - 50 <= counted <= 1.5 * asked + 50:
        return ""
    return (
        f"phase {phase['name']}: the server counted {counted} answers, this run sent {asked} requests: its times are "
        "of other callers too, or of another server behind a balancer (--host takes a server's own address)"
    )
