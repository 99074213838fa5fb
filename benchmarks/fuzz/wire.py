"""Send a hostile request unchanged, and describe its outcome in a few words.

A refusal is right if its type is: HTTP 4xx, gRPC's INVALID_ARGUMENT and the like, or 503 / UNAVAILABLE for a wait that
the request itself bounded. `UPSTREAM` matches what tritonserver 2.51.0 refuses with another type; every other outcome
begins with "finding".
"""

import http.client
import re
import socket
import struct
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as pb

PATIENCE = 30.0  # seconds for an answer to a whole request
WAIT_FOR_MORE = 1.0  # seconds to wait for an answer to an unfinished request
TYPED = ("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED")
UPSTREAM = re.compile(
    "failed to parse the request JSON buffer|Unable to (parse|set) |attempt to get members for non-object"  # HTTP 500
    "|^Unable to parse request$"  # gRPC INTERNAL: the message is not protobuf
    "|^This protocol is restricted"  # gRPC UNAVAILABLE
)


def send_http(address: str, request: bytes, wait_for_more: float = WAIT_FOR_MORE) -> str:
    host, port = address.rsplit(":", 1)
    whole = is_whole(request)
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT
        response = http.client.HTTPResponse(connection)
        try:
            connection.sendall(request)
            connection.settimeout(PATIENCE if whole else wait_for_more)
            response.begin()
            text = response.read(100_000).decode(errors="replace")
        except TimeoutError:
            return "finding: no answer" if whole else "waits for the rest"
        except (OSError, http.client.HTTPException):
            return "connection closed"
        finally:
            response.close()
    if response.status < 400 or response.status == 501:
        return f"HTTP {response.status}"
    return judge(response.status < 500 or is_queue_timeout(text), f"HTTP {response.status}", text)


def is_whole(request: bytes) -> bool:
    """Whether the request is certainly complete: one Content-Length, and a body of that length."""
    head, end, body = request.partition(b"\r\n\r\n")
    lengths = re.findall(rb"\r\ncontent-length: (\d{1,9})(?=\r\n|$)", head, re.IGNORECASE)
    plain = re.match(rb"(GET|POST) /\S* HTTP/1\.1\r\n", head) is not None and b"ncoding:" not in head
    return bool(end) and plain and len(lengths) == 1 and len(body) >= int(lengths[0])


def send_grpc(channel: grpc.Channel, method: str, request: bytes) -> str:
    call = channel.unary_unary(method, request_serializer=None, response_deserializer=None)
    try:
        answer = call(request, timeout=PATIENCE)
    except grpc.RpcError as error:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return "finding: no answer"
        return judge(code.name in TYPED or is_queue_timeout(details), f"gRPC {code.name}", details)
    except ValueError:  # a method's name that gRPC's client does not take
        return "refused by the sender's own library"
    return check_probabilities(answer) if method.endswith("ModelInfer") else "gRPC OK"


def check_probabilities(answer: bytes) -> str:
    response: Any = pb.ModelInferResponse.FromString(answer)
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        if response.model_name == "classifier" and output.name == "probabilities" and output.datatype == "FP32":
            rows = np.frombuffer(raw, np.float32).reshape(-1, output.shape[-1])
            if not np.allclose(rows.sum(axis=1), 1, atol=1e-4):
                return "finding: probabilities that do not sum to one"
    return "gRPC OK"


def is_queue_timeout(text: str) -> bool:
    return "timeout expired" in text.lower() or "maximum queue size" in text.lower()


def judge(typed: bool, status: str, text: str) -> str:
    if typed:
        return status
    if UPSTREAM.search(text):
        return f"{status} (tritonserver's own)"
    return f"finding: {status}: {shorten(text)}"


def shorten(text: str) -> str:
    """The text without what differs from case to case, such as numbers."""
    return re.sub(r"\d+", "N", text.strip())[:160]
