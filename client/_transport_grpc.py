"""KServe v2 over gRPC: one channel, safe from every thread."""

import struct

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client._errors import ProtocolError, error_from_status
from client._transport import INPUT, OUTPUT, queue_timeout

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),  # gRPC's own limit of 4 MB is less than a photograph
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 60_000),  # a peer that vanished is noticed
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),  # gRPC's own 2 minutes would refuse a server that is back
    ("grpc.use_local_subchannel_pool", 1),  # a connection of its own for every Classifier
    ("grpc.enable_http_proxy", 0),  # as over HTTP: the address given is the address called
]


class GrpcTransport:
    def __init__(self, host: str, port: int) -> None:
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.url = f"grpc://{target}"
        self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def infer(self, model: str, image: bytes, top: int, timeout: float) -> list[str]:
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name=INPUT, datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(struct.pack("<I", len(image)) + image)
        request.outputs.add(name=OUTPUT).parameters["classification"].int64_param = top
        request.parameters["timeout"].int64_param = queue_timeout(timeout)
        try:
            response = self._stub.ModelInfer(request, timeout=timeout)
        except grpc.RpcError as error:
            status, details = error.code().name, error.details() or ""
            raise error_from_status(status, details, url=self.url, model=model, timeout=timeout) from error
        except ValueError as error:  # closed by another thread
            raise error_from_status("CANCELLED", str(error), url=self.url, model=model, timeout=timeout) from error
        try:
            return split_bytes_tensor(response.raw_output_contents[0])
        except (IndexError, struct.error):
            raise ProtocolError(f"the answer holds no {OUTPUT}: check the model [{model} at {self.url}]") from None

    def close(self) -> None:
        self._channel.close()


def split_bytes_tensor(data: bytes) -> list[str]:
    """Elements with a 4-byte little-endian length each. Raises `struct.error` where the lengths do not add up."""
    elements, start = [], 0
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        start += 4 + length
        if start > len(data):
            raise struct.error("an element is cut off")
        elements.append(data[start - length : start].decode(errors="replace"))
    return elements
