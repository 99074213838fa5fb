"""A server that may be told to load, its clients, and new weights for it: good and bad."""

import hashlib
import json
import shutil
import threading
import time

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from server import TritonServer
from server.management import Management


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """kind -> TorchScript bytes: "sharp" and "slow" answer otherwise than version 1, the others are no good."""
    import torch

    class Sharp(torch.nn.Module):
        def forward(self, pixels):
            return pixels.to(torch.float32).mean(dim=(1, 2)) / 8.0

    class Slow(torch.nn.Module):  # a second for an image, and so for a warm-up
        def forward(self, pixels):
            ones = torch.ones([500, 500])
            for _ in range(150):
                ones = ones @ ones / 500.0
            return pixels.to(torch.float32).mean(dim=(1, 2)) / 8.0 * ones[0, :3]

    class NotANumber(torch.nn.Module):
        def forward(self, pixels):
            return pixels.to(torch.float32).mean(dim=(1, 2)) * float("nan")

    class FourClasses(torch.nn.Module):
        def forward(self, pixels):
            return torch.zeros([pixels.size(0), 4])

    folder = tmp_path_factory.mktemp("weights")
    made = {"garbage": b"no archive"}
    models = {"sharp": Sharp(), "slow": Slow(), "nan": NotANumber(), "four classes": FourClasses()}
    for kind, model in models.items():
        torch.jit.script(model).save(str(folder / "model.pt"))
        made[kind] = (folder / "model.pt").read_bytes()
    return made


@pytest.fixture
def build(repository, weights, tmp_path):
    """build(kind) -> a repository as build_models.py leaves it, with these weights and their checksums."""

    def run(kind="sharp"):
        root = shutil.copytree(repository, tmp_path / "built")
        version = root / "backbone" / "1"
        (version / "model.pt").write_bytes(weights[kind])
        digest = hashlib.sha256(weights[kind]).hexdigest()
        (version / "build.json").write_text(json.dumps({"files_sha256": {"model.pt": digest}}))
        return root

    return run


@pytest.fixture(scope="module")
def served(repository, management_token, tmp_path_factory):
    """A server with a management token, and its own repository."""
    root = tmp_path_factory.mktemp("served") / "models"
    shutil.copytree(repository, root, ignore=shutil.ignore_patterns("__pycache__"))
    events = []

    def listen(event):  # what came before it is gone with the server
        events.append("\n".join([event, *log.read_text(errors="replace").splitlines()[-60:]]))

    log = root.with_suffix(".log")
    options = {"management_token": management_token, "probe_interval": 0.5, "log_file": log}
    with TritonServer(root, **options, on_event=listen) as server:
        events.clear()  # of the start
        server.events = events
        server.management = Management(server.http_url, management_token, 60)
        server.folder = root
        yield server


class Load:
    """Four clients that ask without a pause, two by gRPC and two by HTTP; what they got."""

    def __init__(self, server, image):
        self.server, self.image = server, image
        self.answers, self.failures = [], []
        self.stopping = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(index % 2 == 0,), daemon=True) for index in range(4)]

    def run(self, by_grpc):
        module, url = (triton_grpc, self.server.grpc_url) if by_grpc else (triton_http, self.server.http_url)
        with module.InferenceServerClient(url) as client:
            tensor = module.InferInput("image", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[self.image]], dtype=np.object_))
            while not self.stopping.is_set():
                try:
                    answer = client.infer("classifier", [tensor]).as_numpy("probabilities")
                    self.answers.append(round(float(answer.max()), 3))
                except Exception as error:
                    self.failures.append(error)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        self.wait()
        return self

    def wait(self):
        """Wait until every client has had this many more answers."""
        enough = len(self.answers) + 40
        deadline = time.monotonic() + 30
        while len(self.answers) < enough and not self.failures:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def __exit__(self, *error):
        self.wait()
        self.stopping.set()
        for thread in self.threads:
            thread.join(30)


@pytest.fixture
def image(encode):
    return encode((100, 90, 80))  # so that both versions' probabilities are far from 0 and 1


@pytest.fixture
def load(served, image):
    """load(): no request may fail while it runs, and the server may not end."""
    loads = []

    def run():
        loads.append(Load(served, image))
        return loads[-1]

    served.events.clear()
    yield run
    assert served.events == []
    assert loads
    for each in loads:
        assert each.failures == []
        assert len(each.answers) >= 80
