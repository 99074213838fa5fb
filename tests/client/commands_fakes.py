"""The answers of the fakes in the commands' tests."""

from typing import Any

from client import Prediction, ServerStatus
from client._status import parse_status

CAT = [Prediction("[cat]", 3, 0.9)]


def counted(count: int, seconds: float = 0.0) -> dict[str, Any]:
    return {"count": str(count), "ns": str(int(seconds * 1e9))}


def server_status(images: int = 10, ready: bool = True, name: str = "backbone") -> ServerStatus:
    times = {"queue": counted(images, 0.02 * images), "compute_infer": counted(images, 0.03 * images)}
    model = {"name": name, "version": "1", "inference_count": str(images), "execution_count": str(images // 2)}
    ensemble = {"name": "classifier", "version": "1", "inference_stats": {"success": counted(images, 0.05 * images)}}
    entries = {"model_stats": [ensemble, {**model, "inference_stats": times}]}
    return parse_status("grpc://box:1", {"name": "triton", "version": "2.51.0"}, ready, entries)
