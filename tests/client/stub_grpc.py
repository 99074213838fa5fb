"""A scripted gRPC server in this process."""

import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc


class GrpcStub(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers with `raw`, after `act`; records the requests."""

    def __init__(self) -> None:
        self.names = ["probabilities"]
        self.shapes = [[1, 1]]
        self.raw = [struct.pack("<I", 10) + "0.9:1:cät".encode()]
        self.act: Callable[[grpc.ServicerContext], object] = lambda context: None
        self.ready = True
        self.pause = 0.0  # seconds before each answer to a status
        self.statistics: dict[str, Any] = {}
        self.requests: list[Any] = []

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        self.requests.append(request)
        self.act(context)
        tensor = service_pb2.ModelInferResponse.InferOutputTensor
        outputs = [tensor(name=name, shape=shape) for name, shape in zip(self.names, self.shapes, strict=True)]
        return service_pb2.ModelInferResponse(outputs=outputs, raw_output_contents=self.raw)

    def ServerMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        time.sleep(self.pause)
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def ServerReady(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        time.sleep(self.pause)
        return service_pb2.ServerReadyResponse(ready=self.ready)

    def ModelStatistics(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        time.sleep(self.pause)
        return json_format.ParseDict(self.statistics, service_pb2.ModelStatisticsResponse())


def serve(
    stub: GrpcStub,
    port: int = 0,
    credentials: grpc.ServerCredentials | None = None,
    workers: int = 8,
    host: str = "127.0.0.1",
) -> tuple[grpc.Server, int]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(workers), options=options)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stub, server)
    address = f"{host}:{port}"
    port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    server.start()
    return server, port
