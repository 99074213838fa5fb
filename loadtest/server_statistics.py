"""The server's own account of where the time went (KServe's statistics extension), between two moments."""

import json
import urllib.request
from typing import Any

PARTS = ("queue", "compute_input", "compute_infer", "compute_output")


def read_statistics(address: str, timeout: float = 5.0) -> dict[str, dict[str, Any]] | None:
    """``host:port`` of HTTP -> cumulative statistics by model. None where the server does not give them."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}/v2/models/stats", timeout=timeout) as answer:
            models = json.load(answer)["model_stats"]
        return {f"{model['name']} {model['version']}": model for model in models}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def difference(before: dict[str, Any] | None, after: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What happened between: for each model that answered, how often and the mean milliseconds of each part."""
    if before is None or after is None:
        return []
    rows = []
    for name, model in after.items():
        new, old = model["inference_stats"], before.get(name, {}).get("inference_stats", {})

        def grown(part: str, unit: str, new: dict = new, old: dict = old) -> int:
            return int(new.get(part, {}).get(unit, 0)) - int(old.get(part, {}).get(unit, 0))

        answered = grown("success", "count")
        if answered <= 0:
            continue
        executions = int(model["execution_count"]) - int(before.get(name, {}).get("execution_count", 0))
        means = {f"{part}_ms": grown(part, "ns") / 1e6 / answered for part in PARTS}
        rows.append(
            {
                "model": name.rsplit(" ", 1)[0],
                "version": name.rsplit(" ", 1)[1],
                "requests": answered,
                "failed": grown("fail", "count"),
                "batch": answered / executions if executions else None,
                "total_ms": grown("success", "ns") / 1e6 / answered,
                **means,
            }
        )
    return rows
