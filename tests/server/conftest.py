"""A small real repository (names and tensors as build_models.py writes them) and tritonservers on it."""

import io
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from certificates import Authority
from PIL import Image
from server_models import CPU, config, in_process, tensor, write_model

ROOT = Path(__file__).parents[2]
SIDE = 32
LABELS = ("red", "green", "blue")
THREADS = """parameters [
  { key: "INTRA_OP_THREAD_COUNT" value { string_value: "1" } },
  { key: "INTER_OP_THREAD_COUNT" value { string_value: "1" } }
]
"""


def png(colour, side=40):
    buffer = io.BytesIO()
    picture = Image.fromarray(colour) if isinstance(colour, np.ndarray) else Image.new("RGB", (side, side), colour)
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write_classifier(root):
    """preprocess -> backbone (how red, green, blue the picture is) -> softmax."""
    import torch

    class Backbone(torch.nn.Module):
        def forward(self, pixels):
            return pixels.to(torch.float32).mean(dim=(1, 2)) / 16.0  # [B,S,S,3] -> [B,3]

    class Softmax(torch.nn.Module):
        def forward(self, logits):
            return torch.softmax(logits, dim=1)

    image, pixels = tensor("image", "STRING", [1]), tensor("pixels", "UINT8", [SIDE, SIDE, 3])
    logits, probabilities = tensor("logits", "FP32", [3]), tensor("probabilities", "FP32", [3])
    settings = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in {"image_size": SIDE, "resize_size": 36, "interpolation": "bicubic"}.items()
    )
    warmup = 'model_warmup [{ name: "one" batch_size: 1 inputs { key: "%s" value { %s } } }]\n'
    picture = 'data_type: TYPE_STRING dims: [1] input_data_file: "picture"'
    folder = write_model(
        root,
        config("preprocess", [image], [pixels], CPU % 2 + settings + warmup % ("image", picture), "python"),
        "preprocess",
    )
    in_process(folder)
    for source in ROOT.glob("model_repository/preprocess/1/*.py"):
        shutil.copy(source, folder / "1")
    (folder / "warmup").mkdir()
    (folder / "warmup" / "picture").write_bytes(struct.pack("<I", len(png("red"))) + png("red"))
    noise = f"data_type: TYPE_UINT8 dims: [{SIDE}, {SIDE}, 3] random_data: true"
    text = config(
        "backbone", [pixels], [logits], CPU % 1 + THREADS + "dynamic_batching {\n}\n" + warmup % ("pixels", noise)
    )
    folder = write_model(root, text, "backbone", torch.jit.script(Backbone()))
    (folder / "configs").mkdir()
    embedded = text.replace("dynamic_batching {", "dynamic_batching {\npreferred_batch_size: 4")
    (folder / "configs" / "embedded.pbtxt").write_text(embedded)
    write_model(
        root, config("softmax", [logits], [probabilities], CPU % 1 + THREADS), "softmax", torch.jit.script(Softmax())
    )
    steps = "".join(
        f'{{ model_name: "{model}" model_version: -1 input_map {{ key: "{a}" value: "{a}" }} '
        f'output_map {{ key: "{b}" value: "{b}" }} }},'
        for model, a, b in (
            ("preprocess", "image", "pixels"),
            ("backbone", "pixels", "logits"),
            ("softmax", "logits", "probabilities"),
        )
    )
    labelled = probabilities.replace(" }", ' label_filename: "labels.txt" }')
    folder = write_model(
        root,
        config(
            "classifier", [image], [labelled], f"ensemble_scheduling {{ step [{steps.rstrip(',')}] }}\n", "ensemble"
        ),
        "classifier",
    )
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")


@pytest.fixture(scope="session", autouse=True)
def two_cores(tmp_path_factory):
    """Wherever the tests run: on many cores a server warns of these models, which compute on one."""
    folder = tmp_path_factory.mktemp("cgroup")
    (folder / "cpu.max").write_text("200000 100000\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.cores.CGROUP", folder)
        yield


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """The four models of the classifier."""
    root = tmp_path_factory.mktemp("repository")
    write_classifier(root)
    return root


SLEEPY = """
import time
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(request, "seconds") for request in requests]
        time.sleep(float(max(tensor.as_numpy().max() for tensor in tensors)))
        return [pb_utils.InferenceResponse([pb_utils.Tensor("slept", tensor.as_numpy())]) for tensor in tensors]
"""


@pytest.fixture(scope="session")
def light_repository(tmp_path_factory):
    """One model without torch, which sleeps as long as it is asked to; it starts in a second, and no canary fits it."""
    root = tmp_path_factory.mktemp("light")
    text = config("sleepy", [tensor("seconds", "FP32", [1])], [tensor("slept", "FP32", [1])], CPU % 1, "python")
    folder = write_model(root, text, "sleepy")
    in_process(folder)
    (folder / "1" / "model.py").write_text(SLEEPY)
    return root


@pytest.fixture
def sleep():
    """sleep(grpc_url, seconds): one request to the sleepy model, until it is answered."""
    import tritonclient.grpc as triton_grpc

    def run(url, seconds):
        with triton_grpc.InferenceServerClient(url) as client:
            tensor = triton_grpc.InferInput("seconds", [1, 1], "FP32")
            tensor.set_data_from_numpy(np.array([[seconds]], np.float32))
            return float(client.infer("sleepy", [tensor], client_timeout=60).as_numpy("slept")[0, 0])

    return run


@pytest.fixture
def python_backend():
    from server.locate import find_tritonserver
    from server.runtime import PYTHON_VERSION

    if find_tritonserver().stub(PYTHON_VERSION) is None:
        pytest.skip("tritonserver has no Python backend for this Python")


@pytest.fixture(scope="session")
def repository_of_processes(repository, tmp_path_factory):
    """The same, its preprocess step run by the embedded server's own Python backend, where that can work."""
    from benchmarks.resilience.digits import with_processes
    from server import InstallationError
    from server.preflight import check_numpy

    try:
        check_numpy("preprocess")
    except InstallationError as error:
        pytest.skip(str(error))
    return with_processes(repository, tmp_path_factory.mktemp("of_processes") / "repository")


@pytest.fixture(scope="session")
def server_of_processes(repository_of_processes):
    """A server with its preprocess step in separate processes."""
    from server import TritonServer

    with TritonServer(repository_of_processes) as running:
        yield running


@pytest.fixture(scope="session")
def server_in_process(repository):
    """A server with its preprocess step in its own process, as build_models.py configures the embedded server."""
    from server import TritonServer

    with TritonServer(repository) as running:
        yield running


@pytest.fixture(scope="session")
def server(server_in_process):
    """One tritonserver for all tests that leave it as it was."""
    return server_in_process


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """Signs the server's certificate and those of its clients."""
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """Another authority, that nobody here trusts."""
    return Authority(tmp_path_factory.mktemp("tls") / "another")


@pytest.fixture(scope="session")
def management_token():
    return "s3cret"


@pytest.fixture(scope="session")
def tokens(management_token):
    """Tokens by the header that they are sent in."""
    from server.tritonserver_options import MANAGEMENT_HEADER, SHARED_MEMORY_HEADER

    return {MANAGEMENT_HEADER: management_token, SHARED_MEMORY_HEADER: "m3mory"}


@pytest.fixture(scope="session")
def secured_server(repository, authority, tokens):
    """gRPC with mutual TLS, both tokens; HTTP, which has no TLS, on the loopback interface."""
    from server import TritonServer
    from server.tls import Tls

    tls = Tls(*authority.issue("server"), authority.ca)
    management, memory = tokens.values()
    with TritonServer(repository, tls=tls, management_token=management, shared_memory_token=memory) as running:
        yield running


@pytest.fixture(scope="session")
def encode():
    """A colour or an array [H,W,3] -> PNG bytes."""
    return png


@pytest.fixture
def classify():
    """Return classify(server, images, protocol="grpc", timeout=30.0) -> probabilities [B,3], over tritonclient."""
    import tritonclient.grpc as triton_grpc
    import tritonclient.http as triton_http

    def run(server, images, protocol="grpc", timeout=30.0):
        module = triton_grpc if protocol == "grpc" else triton_http
        data = np.array([[image] for image in images], dtype=np.object_)
        tensor = module.InferInput("image", list(data.shape), "BYTES")
        tensor.set_data_from_numpy(data)
        if protocol == "grpc":
            with module.InferenceServerClient(server.grpc_url) as client:
                return client.infer("classifier", [tensor], client_timeout=timeout).as_numpy("probabilities")
        with module.InferenceServerClient(server.http_url, network_timeout=timeout) as client:
            return client.infer("classifier", [tensor]).as_numpy("probabilities")

    return run
