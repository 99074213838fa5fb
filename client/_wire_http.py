"""KServe v2 as HTTP bodies, for the blocking and the asyncio transport."""

import json
import re
import struct
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from client._errors import (
    CUT_OFF,
    ClassifierError,
    DeadlineExceededError,
    InvalidImageError,
    ProtocolError,
    error_from_status,
    perhaps_wanted,
    shorten,
)
from client._prediction import parse_predictions
from client._request import (
    EVIDENCE,
    INPUT,
    OUTPUT,
    SHARED_MEMORY_HEADER,
    Answer,
    Request,
    Share,
    answer_of,
    incomplete,
    microseconds,
)
from client._status import ServerStatus, parse_status

GRPC_STATUS = {  # HTTP's status as gRPC's, so that both protocols raise the same errors
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    502: CUT_OFF,  # a proxy's: the server closed without an answer
    503: "NOT_READY",
}
GAVE_UP = {  # timeouts of the server or a proxy
    408: "the server, or a proxy before it, did not wait for the whole request",
    504: "a proxy did not wait for the server's answer",
}
_TAG = re.compile(r"(?is)<style.*?</style>|<[^>]*>")
NOT_AS_EXPECTED = (ValueError, LookupError, TypeError, RecursionError)  # the last: JSON many levels deep
METADATA, READY, STATISTICS = "/v2", "/v2/health/ready", "/v2/models/stats"


def encode_request(request: Request) -> tuple[str, dict[str, str], list[bytes]]:
    """Path, headers and the body's parts."""
    size = len(request.image) + 4  # a string element: its length, then its bytes
    if request.region is None:
        where: dict[str, Any] = {"binary_data_size": size}
        length, image = struct.pack("<I", len(request.image)), request.image
    else:
        where = {"shared_memory_region": request.region, "shared_memory_byte_size": size}
        length, image = b"", b""
    outputs: list[dict[str, Any]] = [
        {"name": OUTPUT, "parameters": {"classification": request.top, "binary_data": False}}
    ]
    if request.class_map:
        outputs += [{"name": name, "parameters": {"binary_data": False}} for name in EVIDENCE]
    description = {
        "id": request.id,
        "inputs": [{"name": INPUT, "shape": [1, 1], "datatype": "BYTES", "parameters": where}],
        "outputs": outputs,
        "parameters": {"timeout": microseconds(request.queue_timeout)},
    }
    header = json.dumps(description).encode()
    headers = {
        "Content-Type": "application/octet-stream",
        "Content-Length": str(len(header) + len(length) + len(image)),
        "Inference-Header-Content-Length": str(len(header)),
    }
    return f"/v2/models/{quote(request.model, safe='')}/infer", headers, [header + length, image]


def encode_share(share: Share) -> tuple[str, str, dict[str, str], list[bytes]]:
    """Method, path, headers and body."""
    headers = {SHARED_MEMORY_HEADER: share.token}
    if share.verb == "status":
        return "GET", "/v2/systemsharedmemory/status", headers, []
    described = {"key": f"/{share.region}", "offset": 0, "byte_size": share.size} if share.verb == "register" else {}
    body = json.dumps(described).encode()
    path = f"/v2/systemsharedmemory/region/{share.region}/{share.verb}"
    return "POST", path, headers | {"Content-Length": str(len(body))}, [body]


def decode_share(status: int, body: bytes, share: Share, url: str) -> list[str]:
    """The regions' names in the answer to "status"; none for the other calls. Raises a `ClassifierError`."""
    if status != 200:
        raise refusal(status, body, url, "shared memory", share.timeout)
    if share.verb != "status":
        return []
    try:
        return [region["name"] for region in json.loads(body)]
    except NOT_AS_EXPECTED:
        raise ProtocolError(f"the answer is not a list of regions: check the address [{url}]") from None


def decode_answer(status: int, body: bytes, request: Request, url: str) -> Answer:
    """Parse the answer to `request`. Raises a `ClassifierError`."""
    if status != 200:
        raise refusal(status, body, url, request.model, request.timeout)
    try:
        outputs = {output["name"]: output for output in json.loads(body.decode(errors="replace"))["outputs"]}
        predictions = parse_predictions([str(entry) for entry in outputs[OUTPUT]["data"]])
        evidence = [_array(outputs[name]) for name in EVIDENCE] if request.class_map else []
        return answer_of(predictions, *evidence)
    except NOT_AS_EXPECTED:
        raise incomplete(request, url) from None


def decode_status(answers: Sequence[tuple[int, bytes]], url: str, timeout: float) -> ServerStatus:
    """Parse the HTTP status and body of `METADATA`, `READY` and `STATISTICS`. Raises a `ClassifierError`."""
    metadata, ready, statistics = answers
    described, counted = (_decode_json(*answer, url, timeout) for answer in (metadata, statistics))
    return parse_status(url, described, ready[0] == 200, counted)


def refusal(status: int, body: bytes, url: str, model: str, timeout: float) -> ClassifierError:
    """The error for an answer whose HTTP status is not 200."""
    try:
        details = words = str(json.loads(body)["error"])
    except NOT_AS_EXPECTED:  # a proxy's page
        pieces = (" ".join(piece.split()) for piece in _TAG.split(body.decode(errors="replace")))
        words = shorten(" ".join(dict.fromkeys(filter(None, pieces))), 100).removeprefix(f"{status} ")
        details = f"HTTP {status} {words}".rstrip()
        if status == 400:  # tritonserver's own are JSON
            said = f"this is not a classifier's answer ({details})"
            return ProtocolError(f"{said}: check the address; {perhaps_wanted(url)} [{model} at {url}]")
    if status == 413:
        return InvalidImageError(f"the server takes no request that large: send a smaller file [{url}]")
    if status in GAVE_UP:
        said = f"{GAVE_UP[status]} (HTTP {status} {shorten(words)}".rstrip()
        return DeadlineExceededError(f"{said}): raise its timeout or send fewer at a time [{model} at {url}]")
    return error_from_status(GRPC_STATUS.get(status, f"HTTP {status}"), details, url=url, model=model, timeout=timeout)


def other_protocol(error: Exception, url: str) -> ProtocolError:
    return ProtocolError(
        f"this address does not speak HTTP ({shorten(repr(error), 80)}): use the HTTP port, or protocol grpc [{url}]"
    )


def _decode_json(status: int, body: bytes, url: str, timeout: float) -> dict[str, Any]:
    if status != 200:
        raise refusal(status, body, url, "status", timeout)
    try:
        return dict(json.loads(body))
    except NOT_AS_EXPECTED:
        raise ProtocolError(f"the answer is not JSON: check the address [{url}]") from None


def _array(output: dict[str, Any]) -> np.ndarray:
    """The one image's output, float32, without the batch dimension."""
    return np.array(output["data"], dtype=np.float32).reshape(output["shape"][1:])
