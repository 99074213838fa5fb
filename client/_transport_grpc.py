"""KServe v2 over gRPC: one channel, safe from every thread."""

import time

import grpc
from tritonclient.grpc import service_pb2

from client._request import Answer, Request, Share
from client._status import ServerStatus
from client._tls import TLS
from client._wire_grpc import (
    channel_arguments,
    decode_answer,
    decode_regions,
    decode_status,
    encode_request,
    encode_share,
    error_from_rpc,
    make_stub,
)

# ValueError: grpc's word for a channel that another thread has closed.
FAILURES = (grpc.RpcError, ValueError)


class GrpcTransport:
    def __init__(self, host: str, port: int, tls: TLS | None = None, connect_timeout: float | None = None) -> None:
        target, credentials, options = channel_arguments(host, port, tls, connect_timeout)
        self.url = f"grpc://{target}" if credentials is None else f"grpcs://{target}"
        if credentials is None:
            self._channel = grpc.insecure_channel(target, options=options)
        else:
            self._channel = grpc.secure_channel(target, credentials, options=options)
        self._stub = make_stub(self._channel)

    def infer(self, request: Request) -> Answer:
        message = encode_request(request)
        try:
            response = self._stub.ModelInfer(message, timeout=request.timeout)
        except FAILURES as error:
            raise error_from_rpc(error, self.url, request.model, request.timeout) from error
        return decode_answer(response, request, self.url)

    def share(self, share: Share) -> list[str]:
        """The names of the regions that the server has, where they are asked for. Raises a `ClassifierError`."""
        name, message, metadata = encode_share(share)
        try:
            response = getattr(self._stub, name)(message, timeout=share.timeout, metadata=metadata)
        except FAILURES as error:
            raise error_from_rpc(error, self.url, "shared memory", share.timeout) from error
        return decode_regions(response)

    def status(self, timeout: float) -> ServerStatus:
        deadline = time.monotonic() + timeout
        answers = []
        try:
            for call, message in (
                (self._stub.ServerMetadata, service_pb2.ServerMetadataRequest()),
                (self._stub.ServerReady, service_pb2.ServerReadyRequest()),
                (self._stub.ModelStatistics, service_pb2.ModelStatisticsRequest()),
            ):
                answers.append(call(message, timeout=deadline - time.monotonic()))
        except FAILURES as error:
            raise error_from_rpc(error, self.url, "status", timeout) from error
        return decode_status(self.url, *answers)

    def close(self) -> None:
        self._channel.close()
