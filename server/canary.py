"""A real inference, from image bytes to probabilities: the only proof that every backend process is alive."""

import contextlib
import http.client
import json
import math
import struct
import zlib
from typing import Any

SIDE = 32  # pixels
LONGEST = 1e9  # seconds: a socket takes no more than nine times that


class CanaryError(Exception):
    """The server answered with something other than probabilities. `status`: the HTTP status, where it was not 200."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class CanaryUnreachedError(CanaryError):
    """No connection, or what listens there does not speak HTTP."""


class CanaryTimeoutError(CanaryError):
    """No answer in time: the server hangs, or is busy with others."""


class CanaryRefusedError(CanaryError):
    """HTTP 503: a full queue turned the canary away, or no request for the model is served."""


PERHAPS_BUSY = (CanaryTimeoutError, CanaryRefusedError)  # harmless while others are answered


def canary_png() -> bytes:
    """A grey SIDE x SIDE picture, written without an image library."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)  # 8-bit RGB
    rows = (b"\0" + b"\x80" * 3 * SIDE) * SIDE
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def classify_canary(address: str, model: str, timeout: float) -> list[dict[str, Any]]:
    """The outputs for one image through `model` over HTTP: name, shape, data.

    Raises `CanaryError`, one of `PERHAPS_BUSY` where load may be the reason.
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
    """tritonserver's own opinion, which a dead backend process does not change."""
    try:
        ask(address, "GET", "/v2/health/ready", timeout)
    except CanaryError:
        return False
    return True


def success_count(address: str, model: str, timeout: float) -> int:
    """Inferences that `model`, and the ensembles named after it (MODEL_explained), have answered since the start.

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
    """The JSON that the server at `address` answers; {} for an empty body. Raises `CanaryError`."""
    try:
        with contextlib.closing(http.client.HTTPConnection(address, timeout=min(timeout, LONGEST))) as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            text = response.read()
    except TimeoutError as error:
        raise CanaryTimeoutError(f"no answer to {path} in {timeout:g} s") from error
    except (OSError, UnicodeError, http.client.HTTPException) as error:  # UnicodeError: of a host like a..b
        raise CanaryUnreachedError(f"{path}: {error!r}") from error  # repr: another protocol's answer is no text
    if response.status != 200:
        kind = CanaryRefusedError if response.status == 503 else CanaryError
        said = text[:500].decode(errors="replace")
        raise kind(f"{path}: HTTP {response.status}: {said}", response.status)
    try:
        return json.loads(text) if text else {}
    except ValueError as error:
        raise CanaryError(f"{path}: the answer is not JSON: {text[:100]!r}") from error
