"""A real inference, from image bytes to probabilities: the only proof that every backend process is alive."""

import contextlib
import http.client
import json
import math
import struct
import zlib
from typing import Any

SIDE = 32  # pixels
LONGEST = 1e9  # seconds: a socket's timeout must be less than 9.2e9


class CanaryError(Exception):
    """The server did not answer with probabilities.

    `status`: the HTTP status if it was not 200; `reason`: tritonserver's own message, empty if there is none.
    """

    def __init__(self, message: str, status: int | None = None, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.reason = status, reason


class CanaryUnreachedError(CanaryError):
    """The server cannot be reached, or does not speak HTTP."""


class CanaryBusyError(CanaryError):
    """No answer in time, or HTTP 503 (a full queue, a model that is not served): harmless while others are answered."""


def canary_png() -> bytes:
    """A grey SIDE x SIDE picture, written without an image library."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)  # 8-bit RGB
    rows = (b"\0" + b"\x80" * 3 * SIDE) * SIDE
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def classify_canary(address: str, model: str, timeout: float) -> list[dict[str, Any]]:
    """Send one image to `model` over HTTP; return its outputs, each with "name", "shape" and "data".

    Raises `CanaryError`; `CanaryBusyError` if load may be the reason.
    """
    element = canary_png()
    body = struct.pack("<I", len(element)) + element  # a one-element BYTES tensor
    image = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(body)}}
    header = json.dumps({"inputs": [image]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
    answer = ask(address, "POST", f"/v2/models/{model}/infer", timeout, header + body, headers)
    try:
        values = [value for output in answer["outputs"] for value in output["data"]]
    except (LookupError, TypeError):
        values = []
    if not values:
        raise CanaryError(f"the canary image got no output: {str(answer)[:100]}")
    if any(isinstance(value, float) and not math.isfinite(value) for value in values):
        said = f"the canary image got values that are not probabilities: {str(values)[:100]}"
        raise CanaryError(f"{said}; the weights overflow or are damaged: build from others")
    return answer["outputs"]


def is_ready(address: str, timeout: float) -> bool:
    """Whether tritonserver says that it is ready, which it does even if a backend process is dead."""
    try:
        ask(address, "GET", "/v2/health/ready", timeout)
    except CanaryError:
        return False
    return True


def success_count(address: str, model: str, timeout: float) -> int:
    """Count the inferences that `model` and the ensembles MODEL_* (MODEL_explained) have answered since the start.

    Raises `CanaryError`.
    """
    statistics = ask(address, "GET", "/v2/models/stats", timeout)
    try:
        versions = [(each["name"], each["inference_stats"]["success"]["count"]) for each in statistics["model_stats"]]
    except (LookupError, TypeError) as error:
        raise CanaryError(f"the statistics are not tritonserver's: {str(statistics)[:100]}") from error
    return sum(int(count) for name, count in versions if name == model or name.startswith(f"{model}_"))


def ask(
    address: str,
    method: str,
    path: str,
    timeout: float,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> Any:
    """Return the JSON answer of the server at `address`, {} for an empty body. Raises `CanaryError`."""
    try:
        with contextlib.closing(http.client.HTTPConnection(address, timeout=min(timeout, LONGEST))) as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            text = response.read()
    except TimeoutError as error:
        raise CanaryBusyError(f"no answer to {path} in {timeout:g} s") from error
    except (OSError, UnicodeError, http.client.HTTPException) as error:  # UnicodeError: a host such as a..b
        raise CanaryUnreachedError(f"{path}: {error!r}") from error  # repr: it may hold binary data
    if response.status != 200:
        kind = CanaryBusyError if response.status == 503 else CanaryError
        reason = _reason(text)
        said = " ".join((reason or text[:500].decode(errors="replace")).split())
        raise kind(f"{path}: HTTP {response.status}: {said}", response.status, reason)
    try:
        return json.loads(text) if text else {}
    except ValueError as error:
        raise CanaryError(f"{path}: the answer is not JSON: {text[:100]!r}") from error


def _reason(text: bytes) -> str:
    """Extract tritonserver's message from {"error": ...}; empty for the answer of another server."""
    try:
        return str(json.loads(text)["error"])
    except (ValueError, LookupError, TypeError):
        return ""
