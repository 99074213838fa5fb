"""A real tritonserver: answers, refusals, and that a refusal hurts nobody else."""

import concurrent.futures
import http.client
import json
import re
import struct
import time
import zlib

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.server
PROTOCOLS = ["grpc", "http"]


def post(server, path, body, headers=None):
    connection = http.client.HTTPConnection(server.http_url, timeout=60)
    try:
        connection.request("POST", path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.fixture(params=["server_in_process", "server_of_processes"])
def server(request):
    """Whichever way the preprocess step runs, what is seen from outside is the same."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def still_right(server, classify, encode):
    """After the test the server must answer rightly on both protocols."""
    yield
    for protocol in PROTOCOLS:
        assert classify(server, [encode("lime")], protocol).argmax() == 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_answers(server, classify, encode, protocol):
    probabilities = classify(server, [encode(colour) for colour in ("red", "lime", "blue")], protocol)
    assert probabilities.argmax(axis=1).tolist() == [0, 1, 2]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)


def test_labels_through_the_classification_extension(server, encode):
    with triton_grpc.InferenceServerClient(server.grpc_url) as client:
        tensor = triton_grpc.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[encode("blue")]], dtype=np.object_))
        wanted = triton_grpc.InferRequestedOutput("probabilities", class_count=2)
        answer = client.infer("classifier", [tensor], outputs=[wanted]).as_numpy("probabilities")
    assert answer.reshape(-1)[0].decode().split(":")[2] == "blue"


def png_header(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body)) + b"\0\0\0\1IDAT"


@pytest.mark.usefixtures("still_right")
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda encode: encode("red")[:60], "truncated or damaged"),
        (lambda encode: b"\xff\xd8\xff\xe0" + b"\0" * 500, "truncated or damaged"),
        (lambda encode: png_header(50_000, 50_000), "2500000000 pixels, the limit is 89478485"),
        (lambda encode: b"", "the image is empty"),
        (lambda encode: b"a line of text", "not a JPEG, PNG, WebP, BMP or GIF image"),
        (lambda encode: bytes(100_000_000), "100000000 bytes, the limit is 20971520"),
    ],
    ids=["truncated", "malformed", "bomb", "empty", "text", "100MB"],
)
def test_a_bad_image_is_refused(server, classify, encode, protocol, bad, message):
    with pytest.raises(InferenceServerException, match=message):
        classify(server, [bad(encode)], protocol)


@pytest.mark.usefixtures("still_right")
def test_a_bad_image_in_a_request_is_named(server, classify, encode):
    with pytest.raises(InferenceServerException, match="image 1 of 3: "):
        classify(server, [encode("red"), b"text", encode("red")])


@pytest.mark.usefixtures("still_right")
def test_bad_images_in_a_crowd(server, classify, encode):
    """Requests in flight together: each bad one fails with its own message, each good one gets its own answer."""
    colours = ["red", "lime", "blue"] * 8
    bad = [  # every fourth
        (b"bad", "not a JPEG"),
        (png_header(50_000, 50_000), "2500000000 pixels"),
        (bytes(100_000_000), "100000000 bytes"),
        (encode("red")[:60], "truncated"),
        (b"", "empty"),
        (b"RIFF", "not a JPEG"),
    ]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        futures = []
        for index, colour in enumerate(colours):
            futures.append(pool.submit(classify, server, [encode(colour) if index % 4 else bad[index // 4][0]]))
        for index, future in enumerate(futures):
            if index % 4:
                assert future.result().argmax() == index % 3
            else:
                with pytest.raises(InferenceServerException, match=bad[index // 4][1]):
                    future.result()


@pytest.mark.usefixtures("still_right")
@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "expected|unable to find"),
        ([b"ab"], "incomplete|expected|unexpected"),
        ([struct.pack("<I", 99) + b"short"], "incomplete|expected|unexpected"),
        ([struct.pack("<I", 1) + b"x" + struct.pack("<I", 1) + b"y"], "unexpected|expected"),
    ],
    ids=["nothing", "half-a-length", "too-long-a-length", "two-strings"],
)
def test_a_malformed_grpc_tensor_is_refused(server, raw, message):
    """What no client library sends: the string tensor's own framing is wrong."""
    request = service_pb2.ModelInferRequest(model_name="classifier", raw_input_contents=raw)
    request.inputs.add(name="image", datatype="BYTES", shape=[1, 1])
    with grpc.insecure_channel(server.grpc_url) as channel, pytest.raises(grpc.RpcError) as refused:
        service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
    assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL)
    assert re.search(message, refused.value.details())


def inputs(**tensor):
    return json.dumps({"inputs": [tensor] if tensor else []}).encode()


@pytest.mark.usefixtures("still_right")
@pytest.mark.parametrize(
    ("body", "header", "message"),
    [
        (b"", None, "the image is empty (0 bytes): send the bytes of"),
        (b"{", None, "failed to parse the request JSON buffer"),
        (b"hello", "999999", "inference header size should be in range (0, 5), got: 999999"),
        (b"hello", "-1", "inference header size should be in range (0, 5), got: -1"),
        (bytes(100_000_000), None, "failed to parse the request JSON buffer"),
        (inputs(), None, "missing required input(s) ['image']"),
        (inputs(name="image", shape=[1, 1], datatype="BYTES"), None, "no field is set"),
        (inputs(name="image", shape=[1, 9], datatype="BYTES", data=["a"]), None, "Expected [-1,1], got [1,9]"),
    ],
    ids=["empty", "half", "long-header", "negative-header", "100MB", "no-input", "no-data", "too-little-data"],
)
def test_a_bad_body_is_refused(server, body, header, message):
    headers = {} if header is None else {"Inference-Header-Content-Length": header}
    status, text = post(server, "/v2/models/classifier/infer", body, headers)
    assert status in (400, 500)
    assert message in json.loads(text)["error"]


def infer(server, protocol, model, name, array, datatype):
    module, url = (triton_grpc, server.grpc_url) if protocol == "grpc" else (triton_http, server.http_url)
    with module.InferenceServerClient(url) as client:
        tensor = module.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        return client.infer(model, [tensor])


@pytest.mark.usefixtures("still_right")
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("model", "name", "array", "datatype", "message"),
    [
        ("classifier", "image", np.zeros((1, 1), np.float32), "FP32", "data-type"),
        ("classifier", "image", np.full((1, 2), b"x", np.object_), "BYTES", "unexpected shape"),
        ("classifier", "image", np.full((17, 1), b"x", np.object_), "BYTES", "batch-size must be <= 16"),
        ("classifier", "picture", np.full((1, 1), b"x", np.object_), "BYTES", "unexpected inference input|expected"),
        ("backbone", "pixels", np.zeros((1, 31, 32, 3), np.uint8), "UINT8", "unexpected shape"),
        ("nobody", "image", np.full((1, 1), b"x", np.object_), "BYTES", "unknown model: 'nobody'"),
    ],
    ids=["dtype", "shape", "batch", "name", "pixels", "model"],
)
def test_a_wrong_tensor_is_refused(server, protocol, model, name, array, datatype, message):
    with pytest.raises(InferenceServerException, match=message):
        infer(server, protocol, model, name, array, datatype)


def test_management_is_closed_over_grpc(server):
    with triton_grpc.InferenceServerClient(server.grpc_url) as client:
        for call in (
            client.get_model_repository_index,
            lambda: client.load_model("classifier"),
            lambda: client.unload_model("classifier"),
            lambda: client.get_model_config("classifier"),
            client.get_system_shared_memory_status,
            lambda: client.register_system_shared_memory("x", "/x", 1),
            client.get_cuda_shared_memory_status,
            client.get_trace_settings,
            client.get_log_settings,
        ):
            with pytest.raises(InferenceServerException, match="restricted"):
                call()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/classifier/unload"),
        ("GET", "/v2/models/classifier/config"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/x/register"),
        ("GET", "/v2/cudasharedmemory/status"),
        ("GET", "/v2/trace/setting"),
        ("GET", "/v2/logging"),
    ],
)
def test_management_is_closed_over_http(server, method, path):
    connection = http.client.HTTPConnection(server.http_url, timeout=10)
    connection.request(method, path, b"{}" if method == "POST" else None)
    response = connection.getresponse()
    assert response.status in (401, 403)
    assert "restricted" in response.read().decode()
    connection.close()


@pytest.mark.parametrize("module", [triton_grpc, triton_http], ids=PROTOCOLS)
def test_what_clients_need_is_open(server, module):
    url = server.grpc_url if module is triton_grpc else server.http_url
    with module.InferenceServerClient(url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("classifier")
        assert client.get_server_metadata()
        assert client.get_model_metadata("classifier")
        assert client.get_inference_statistics("classifier")


def test_metrics(server):
    connection = http.client.HTTPConnection(server.metrics_url, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    assert 'nv_inference_pending_request_count{model="backbone"' in text
    assert 'nv_inference_request_summary_us_count{model="classifier"' in text


def test_listens_on_loopback_only(server):
    import psutil

    ports = {int(url.rsplit(":", 1)[1]) for url in (server.http_url, server.grpc_url, server.metrics_url)}
    listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port in ports]
    assert {address.port for address in listening} == ports
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_latency(server, classify, encode):
    """Gross regressions only: a small ensemble request takes one to two milliseconds on an idle machine."""
    with triton_grpc.InferenceServerClient(server.grpc_url) as client:
        tensor = triton_grpc.InferInput("image", [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[encode("red")]], dtype=np.object_))
        times = []
        for _ in range(50):
            begun = time.perf_counter()
            client.infer("classifier", [tensor])
            times.append(time.perf_counter() - begun)
    assert sorted(times)[10] < 0.02
