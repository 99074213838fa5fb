"""A KServe v2 server that does nothing: the rate at which it answers a load generator is the most that this can send.

    python -m loadtest.null_server

Prints its ports as JSON and ends when its standard input does.
"""

import asyncio
import json
import sys

import grpc
from tritonclient.grpc import service_pb2

ANSWER = b"1.000000:0:null"
BODY = json.dumps(
    {"outputs": [{"name": "probabilities", "datatype": "BYTES", "shape": [1], "data": [ANSWER.decode()]}]}
)
HTTP_ANSWER = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n{BODY}".encode()
GRPC_ANSWER = service_pb2.ModelInferResponse(
    model_name="null",
    outputs=[{"name": "probabilities", "datatype": "BYTES", "shape": [1, 1]}],
    raw_output_contents=[len(ANSWER).to_bytes(4, "little") + ANSWER],
).SerializeToString()


async def answer_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").lower().split("\r\n")
            length = next((int(line[15:]) for line in lines if line.startswith("content-length:")), 0)
            await reader.readexactly(length)
            if lines[0].startswith("post "):
                writer.write(HTTP_ANSWER)
            else:  # no statistics
                writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def answer_grpc(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return GRPC_ANSWER


async def serve() -> None:
    http = await asyncio.start_server(answer_http, "127.0.0.1", 0, limit=2**20, backlog=1024)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(answer_grpc)}  # bytes in, bytes out
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(json.dumps({"http": http.sockets[0].getsockname()[1], "grpc": grpc_port}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    http.close()
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(serve())
