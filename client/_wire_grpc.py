"""KServe v2 as protobuf messages, for the blocking and the asyncio transport."""

import re
import struct
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor

from client._address import Address
from client._errors import CUT_OFF, ClassifierError, error_from_status
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
from client._tls import grpc_credentials

_SERVICE = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
STATUS_CALLS: tuple[tuple[str, Any], ...] = (  # in the order of `decode_status`
    ("ServerMetadata", service_pb2.ServerMetadataRequest()),
    ("ServerReady", service_pb2.ServerReadyRequest()),
    ("ModelStatistics", service_pb2.ModelStatisticsRequest()),
)
_UNCONNECTED = re.compile(r"all backends failing|failed to connect|resol")  # gRPC's words: nothing has been sent
_LENGTH_DELIMITED = 2  # protobuf's wire type of a field of bytes
_RAW_INPUT = bytes(
    [service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name["raw_input_contents"].number << 3 | _LENGTH_DELIMITED]
)


def channel_arguments(address: Address) -> tuple[grpc.ChannelCredentials | None, list[tuple[str, Any]]]:
    """The credentials and options of a channel."""
    options = [
        ("grpc.max_send_message_length", -1),  # gRPC's own limit of 4 MB is less than a photograph
        ("grpc.max_receive_message_length", -1),
        ("grpc.lb_policy_name", "round_robin"),  # over all addresses of a name: a headless service's pods
        ("grpc.keepalive_time_ms", 60_000),  # a peer that vanished is noticed
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),  # gRPC's own 2 minutes would refuse a server that is back
        ("grpc.use_local_subchannel_pool", 1),  # each Classifier has its own connection
        ("grpc.enable_http_proxy", 0),  # as over HTTP: the environment's proxies are ignored
        ("grpc.enable_retries", 1),  # only of what no server has seen, as a connection ended; others: the Classifier's
    ]
    if address.connect_timeout is not None:
        options.append(("grpc.min_reconnect_backoff_ms", int(address.connect_timeout * 1000)))  # gRPC's connect timeout
    return None if address.tls is None else grpc_credentials(address.tls), options


def open_channel(module: Any, target: str, credentials: grpc.ChannelCredentials | None, options: Any) -> Any:
    """Open a channel of `module`: grpc or grpc.aio."""
    if credentials is None:
        return module.insecure_channel(target, options=options)
    return module.secure_channel(target, credentials, options=options)


def make_stub(channel: Any) -> Any:
    """The service's stub on a channel of grpc or grpc.aio. ModelInfer takes `encode_request`'s bytes."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    deserialize = service_pb2.ModelInferResponse.FromString
    stub.ModelInfer = channel.unary_unary(f"/{_SERVICE.full_name}/ModelInfer", response_deserializer=deserialize)
    return stub


def encode_request(request: Request) -> bytes:
    """Serialize a ModelInferRequest. The image is appended by hand: protobuf would copy it three times."""
    size = 4 + len(request.image)  # a string element: its length, then its bytes
    message = service_pb2.ModelInferRequest(model_name=request.model, id=request.id)
    tensor = message.inputs.add(name=INPUT, datatype="BYTES", shape=[1, 1])
    message.outputs.add(name=OUTPUT).parameters["classification"].int64_param = request.top
    for name in EVIDENCE if request.class_map else ():
        message.outputs.add(name=name)
    message.parameters["timeout"].int64_param = microseconds(request.queue_timeout)
    if request.region is not None:
        tensor.parameters["shared_memory_region"].string_param = request.region
        tensor.parameters["shared_memory_byte_size"].int64_param = size
        return message.SerializeToString()
    return b"".join(
        (message.SerializeToString(), _RAW_INPUT, _varint(size), struct.pack("<I", len(request.image)), request.image)
    )


def _varint(number: int) -> bytes:
    """Encode a length as protobuf does: seven bits a byte, the lowest first."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode_share(share: Share) -> tuple[str, Any, list[tuple[str, str]]]:
    """The call's name, its message and its metadata."""
    metadata = [(f"triton-grpc-protocol-{SHARED_MEMORY_HEADER}", share.token)]
    if share.verb == "register":
        message = service_pb2.SystemSharedMemoryRegisterRequest(
            name=share.region, key=f"/{share.region}", byte_size=share.size
        )
        return "SystemSharedMemoryRegister", message, metadata
    if share.verb == "unregister":
        message = service_pb2.SystemSharedMemoryUnregisterRequest(name=share.region)
        return "SystemSharedMemoryUnregister", message, metadata
    return "SystemSharedMemoryStatus", service_pb2.SystemSharedMemoryStatusRequest(), metadata


def decode_regions(message: Any) -> list[str]:
    """The regions' names in the answer to "status"; none in the answers to the other calls."""
    return list(getattr(message, "regions", ()))


def decode_answer(message: service_pb2.ModelInferResponse, request: Request, url: str) -> Answer:
    """Parse the answer to `request`. Raises `ProtocolError`."""
    pairs = zip(message.outputs, message.raw_output_contents, strict=False)
    outputs = {output.name: (output, raw) for output, raw in pairs}
    try:
        predictions = parse_predictions(
            [entry.decode(errors="replace") for entry in deserialize_bytes_tensor(outputs[OUTPUT][1])]
        )
        evidence = [_array(*outputs[name]) for name in EVIDENCE] if request.class_map else []
        return answer_of(predictions, *evidence)
    except (KeyError, ValueError, struct.error):
        raise incomplete(request, url) from None


def error_from_rpc(error: Exception, url: str, model: str, timeout: float) -> ClassifierError:
    """The typed error for a `grpc.RpcError`, or for what grpc raises if the channel was closed meanwhile."""
    code = error.code() if isinstance(error, grpc.RpcError) else grpc.StatusCode.CANCELLED
    details = (error.details() or "") if isinstance(error, grpc.RpcError) else str(error)
    broke = code is grpc.StatusCode.UNAVAILABLE and not _UNCONNECTED.search(details.lower())
    return error_from_status(CUT_OFF if broke else code.name, details, url=url, model=model, timeout=timeout)


def decode_status(url: str, metadata: Any, ready: Any, statistics: Any) -> ServerStatus:
    """Parse the answers to `STATUS_CALLS`; 64-bit numbers become strings, as they are in the server's own JSON."""
    answer = json_format.MessageToDict(statistics, preserving_proto_field_name=True)
    return parse_status(url, {"name": metadata.name, "version": metadata.version}, ready.ready, answer)


def _array(output: Any, raw: bytes) -> np.ndarray:
    """The one image's output, float32, without the batch dimension."""
    return np.frombuffer(raw, np.float32).reshape(output.shape[1:]).copy()  # the caller may write to it, as over HTTP
