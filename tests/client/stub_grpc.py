"""A gRPC server in this process that does as it is told."""

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc


class GrpcStub(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with `raw`, after `act`; keeps what it was sent."""

    def __init__(self) -> None:
        self.names = ["probabilities"]
        self.raw = [struct.pack("<I", 10) + "0.9:1:cät".encode()]
        self.act: Callable[[grpc.ServicerContext], object] = lambda context: None
        self.requests: list[Any] = []

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.requests.append(request)
        self.act(context)
        outputs = [service_pb2.ModelInferResponse.InferOutputTensor(name=name, shape=[1, 1]) for name in self.names]
        return service_pb2.ModelInferResponse(outputs=outputs, raw_output_contents=self.raw)


def serve(stub: GrpcStub, port: int = 0, credentials: grpc.ServerCredentials | None = None) -> tuple[grpc.Server, int]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(8), options=options)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stub, server)
    address = f"127.0.0.1:{port}"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    return server, port
