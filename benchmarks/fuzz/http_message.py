"""Requests of the KServe v2 interface over HTTP, as bytes: valid, or with the headers, paths and lengths given."""

import json
import struct
from typing import Any

INFER = "/v2/models/classifier/infer"


def inference(image: bytes, **more: Any) -> tuple[dict[str, Any], bytes]:
    """Return the JSON and the tensor of a valid inference request."""
    tensor = struct.pack("<I", len(image)) + image
    described = {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tensor)}}
    return {"inputs": [described], **more}, tensor


def message(
    body: bytes, headers: dict[str, str] | list[tuple[str, str]] | None = None, method: str = "POST", path: str = INFER
) -> bytes:
    pairs = list(headers.items()) if isinstance(headers, dict) else list(headers or [])
    if not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in pairs):
        pairs.append(("Content-Length", str(len(body))))
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *(f"{n}: {v}" for n, v in pairs)]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + body


def binary(content: Any, tensor: bytes, header_length: str | None = None, **more: str) -> bytes:
    header = dump(content)
    return message(header + tensor, {"Inference-Header-Content-Length": header_length or str(len(header)), **more})


def dump(content: Any) -> bytes:
    return json.dumps(content).encode()
