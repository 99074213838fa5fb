"""What deploy/ relies on holds for the real tritonserver: its metrics, the probe, the entry point's preload."""

import concurrent.futures
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from certificates import ready, refused
from manifests import IMAGE, ROOT, lay_out, queries, selectors
from server_models import in_process

from kernels import native_library
from server import TritonServer
from server.backends import build as backends
from server.canary import CanaryBusyError, CanaryError, classify_canary, is_ready
from server.endpoints import free_ports
from server.locate import find_tritonserver
from server.repository import read_repository
from server.runtime import Runtime

pytestmark = pytest.mark.server
# Exported where there is a GPU; from tritonserver's documentation (docs/user_guide/metrics.md).
GPU = {"nv_gpu_power_usage", "nv_gpu_utilization", "nv_gpu_memory_total_bytes", "nv_gpu_memory_used_bytes"}
SCRAPED = ("job", "instance", "namespace", "pod")  # labels that Prometheus adds


def matches(labels, series):
    """Whether a selector's matchers fit the labels of a series."""
    for name, (operator, value) in labels.items():
        if name not in SCRAPED:
            own = series.get(name, "")
            same = re.fullmatch(value, own) is not None if "Re" in operator else own == value
            if same == ("Not" in operator):
                return False
    return True


def test_tritonserver_exports_what_the_queries_read(server, classify, encode):
    """Each selector finds a series of the real server; GPU families are held to its documentation."""
    classify(server, [encode("red")])
    text = urllib.request.urlopen(f"http://{server.metrics_url}/metrics", timeout=30).read().decode()
    series = [
        (name, dict(re.findall(r'(\w+)="([^"]*)"', labels)))
        for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE)
    ]
    looked_up = 0
    for place, query in queries().items():
        for metric, labels in selectors(query):
            if metric == "up":  # Prometheus's own
                continue
            looked_up += 1
            if metric.startswith("nv_gpu_"):
                assert metric in GPU, (place, metric)
            else:
                assert any(name == metric and matches(labels, its) for name, its in series), (place, metric, labels)
    assert looked_up > 20
    assert not any(matches({"model": ("MatchOp.Equal", "another")}, its) for _, its in series if "model" in its)


def probe(server, question):
    environment = {
        **os.environ,
        "WIDEFIELD_HTTP_PORT": server.http_url.rpartition(":")[2],
        "PYTHONPATH": str(ROOT / "server"),  # canary.py, which lies beside it in the image
    }
    command = [sys.executable, str(IMAGE / "probe.py"), question]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("question", ["ready", "alive"])
def test_probe(server, question):
    done = probe(server, question)
    assert done.returncode == 0, done.stderr


SLOW = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        time.sleep(0.3)
        output = pb_utils.Tensor("probabilities", np.zeros((1, 1), np.float32))
        return [pb_utils.InferenceResponse([output]) for _ in requests]
"""
FULL = """name: "classifier"
backend: "python"
max_batch_size: 1
input [{ name: "image" data_type: TYPE_STRING dims: [1] }]
output [{ name: "probabilities" data_type: TYPE_FP32 dims: [1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
dynamic_batching { default_queue_policy { max_queue_size: 1 } }
"""


def test_a_full_queue_is_busy_not_dead(tmp_path):
    """The real server turns the canary away with the status that the probe takes for busy."""
    version = tmp_path / "classifier" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(SLOW)
    (version.parent / "config.pbtxt").write_text(FULL)
    in_process(version.parent)
    with TritonServer(tmp_path) as server:
        done = threading.Event()

        def ask():
            while not done.is_set():
                with contextlib.suppress(CanaryError):
                    classify_canary(server.http_url, "classifier", 10)

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            try:
                for _ in range(8):
                    pool.submit(ask)
                refusals = set()
                for _ in range(20):
                    try:
                        classify_canary(server.http_url, "classifier", 10)
                    except CanaryError as error:
                        refusals.add((type(error), error.status))
                assert refusals == {(CanaryBusyError, 503)}
                assert probe(server, "alive").returncode == 0
            finally:
                done.set()


@pytest.mark.usefixtures("python_backend")
def test_entry_point_preloads_for_tritonserver_alone(light_repository, authority, tmp_path):
    """Only tritonserver itself is preloaded; gRPC has mutual TLS."""
    import torch

    certificate, key = authority.issue("server")

    runtime = Runtime(find_tritonserver(), read_repository(light_repository))
    http, grpc, metrics = free_ports(["127.0.0.1"] * 3)
    environment = {
        **os.environ,
        **runtime.environment(),
        "TRITONSERVER": str(runtime.installation.executable),
        "WIDEFIELD_LIBRARY": str(native_library()),
        "WIDEFIELD_FIXES": str(backends.FIXES.output),
        "WIDEFIELD_LIBTORCH": str(Path(torch.__file__).parent / "lib"),
        "WIDEFIELD_MODELS": str(light_repository),
        "WIDEFIELD_HOST": "127.0.0.1",
        "WIDEFIELD_TLS_CERT": str(certificate),
        "WIDEFIELD_TLS_KEY": str(key),
        "WIDEFIELD_TLS_CLIENT_CA": str(authority.ca),
        "WIDEFIELD_HTTP_PORT": str(http),
        "WIDEFIELD_GRPC_PORT": str(grpc),
        "WIDEFIELD_METRICS_PORT": str(metrics),
        "WIDEFIELD_DRAIN_SECONDS": "5",
    }
    lay_out(tmp_path)
    command = [str(tmp_path / "serve.py"), f"--backend-directory={runtime.folder / 'backends'}"]
    command += [f"--backend-config=python,shm-region-prefix-name={runtime.shm_prefix}"]
    log = runtime.folder / "log"
    try:
        with log.open("w") as output:
            server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        try:
            end = time.monotonic() + 120
            while not is_ready(f"127.0.0.1:{http}", 1.0):
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < end, log.read_text()
                time.sleep(0.2)
            assert ready(f"127.0.0.1:{grpc}", authority.ca, authority.issue("client"))
            assert refused(f"127.0.0.1:{grpc}", authority.ca)
            stubs = psutil.Process(server.pid).children(recursive=True)
            assert {stub.name() for stub in stubs} == {"triton_python_backend_stub"}
            assert "libwidefield.so" in Path(f"/proc/{server.pid}/maps").read_text()
            for stub in stubs:
                maps = Path(f"/proc/{stub.pid}/maps").read_text()
                assert "libwidefield.so" not in maps
                assert "libtorch" not in maps
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0, log.read_text()
        finally:
            server.kill()
            server.wait()
    finally:
        runtime.remove()
