"""The load with which `server.tune` measures: callers that each send the next image once they have an answer."""

import struct
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server.repository import ENSEMBLE
from server.tuned_settings import TuneError

CHANNEL = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]  # without a proxy, one for each caller


def closed_loop(address: str, image: bytes, callers: int, seconds: float) -> list[float]:
    """Let each caller send images one after another for `seconds`; return the latency of each request in seconds."""
    request = service_pb2.ModelInferRequest(model_name=ENSEMBLE)
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    request.raw_input_contents.append(struct.pack("<I", len(image)) + image)

    def call(_: int) -> list[float]:
        """Return the latencies of one caller. Raises `TuneError` with the server's reason."""
        taken: list[float] = []
        with grpc.insecure_channel(address, options=CHANNEL) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            passed = 0.0
            while len(taken) < 2 or passed < seconds:
                begun = time.perf_counter()
                try:
                    stub.ModelInfer(request, timeout=60)
                except grpc.RpcError as error:
                    raise TuneError(f"the image was not classified: {error.details()}") from None
                taken.append(time.perf_counter() - begun)
                passed += taken[-1]
        return taken

    with ThreadPoolExecutor(callers) as pool:
        return [value for values in pool.map(call, range(callers)) for value in values]
