"""Python models in tritonserver's own process: as the Python backend runs them, errors too, and nothing left of it."""

import concurrent.futures
import re
import shutil
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton_grpc
from server_models import CPU, config, in_process, tensor, write_model
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from benchmarks.resilience.footprint import tritonserver_of
from server import StartError, TritonServer

ODD = """
import json
import os
import threading

import triton_python_backend_utils as pb_utils
from neighbour import NAME


class TritonPythonModel:
    def initialize(self, args):
        self.name = args["model_name"]
        slept = pb_utils.get_output_config_by_name(json.loads(args["model_config"]), "slept")
        self.dtype = pb_utils.triton_string_to_numpy(slept["data_type"])
        self.local = threading.local()

    def execute(self, requests):
        (request,) = requests
        seconds = pb_utils.get_input_tensor_by_name(request, "seconds").as_numpy()
        number = int(seconds.flat[0])
        self.local.calls = getattr(self.local, "calls", 0) + 1
        pb_utils.Logger.log_warn(f"{NAME} of {self.name} has {number}, call {self.local.calls}")
        if number == 1:
            raise RuntimeError("one is too few")
        if number == 2:
            return []
        if number == 3:
            error = pb_utils.TritonError("not three", pb_utils.TritonError.UNAVAILABLE)
            return [pb_utils.InferenceResponse(error=error)]
        if number == 4:
            return [pb_utils.InferenceResponse([pb_utils.Tensor("slept", seconds.astype("complex64"))])]
        if number == 5:
            return [None]
        if number == 6:
            os.abort()
        others = [pb_utils.Tensor("nobody_asks", seconds)]
        slept = seconds.astype(self.dtype).T.copy().T[:, ::-1]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("slept", slept), *others])]
"""


def write(root, script, columns=1, name="sleepy"):
    """A model "seconds" -> "slept", [B,columns] float32."""
    inputs, outputs = [tensor("seconds", "FP32", [columns])], [tensor("slept", "FP32", [columns])]
    folder = write_model(root, config(name, inputs, outputs, CPU % 1, "python"), name)
    (folder / "1" / "model.py").write_text(script)
    in_process(folder)
    return folder


def infer(url, values, model="sleepy"):
    with triton_grpc.InferenceServerClient(url) as client:
        given = triton_grpc.InferInput("seconds", list(values.shape), np_to_triton_dtype(values.dtype))
        given.set_data_from_numpy(values)
        wanted = [triton_grpc.InferRequestedOutput("slept")]
        return client.infer(model, [given], outputs=wanted, client_timeout=60).as_numpy("slept")


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Two models, each with a module of the same name beside it; the log is the server's."""
    root = tmp_path_factory.mktemp("odd")
    for name in ("sleepy", "other"):
        folder = write(root, ODD, columns=3, name=name)
        (folder / "1" / "neighbour.py").write_text(f'NAME = "neighbour of {name}"\n')
    log = tmp_path_factory.mktemp("log") / "server.log"
    with TritonServer(root, log_file=log) as server:
        yield server


@pytest.mark.server
def test_an_answer_is_its_array_whatever_its_strides(odd):
    values = np.array([[7, 8, 9], [10, 11, 12]], np.float32)
    np.testing.assert_array_equal(infer(odd.grpc_url, values), values[:, ::-1])


@pytest.mark.server
@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (1, "INTERNAL", "RuntimeError: one is too few"),
        (2, "INTERNAL", "ValueError: execute() returned 0 responses for 1 requests"),
        (3, "UNAVAILABLE", "not three"),
        (4, "INTERNAL", "ValueError: output 'slept' is complex64: numbers and booleans alone can be answered here"),
        (5, "INTERNAL", "AttributeError: 'NoneType' object has no attribute 'error'"),
    ],
)
def test_a_failure_is_its_requests_own(odd, number, code, message):
    with pytest.raises(InferenceServerException) as failed:
        infer(odd.grpc_url, np.full((1, 3), number, np.float32))
    assert (failed.value.status(), failed.value.message()) == (f"StatusCode.{code}", message)
    assert infer(odd.grpc_url, np.full((1, 3), 7, np.float32)).tolist() == [[7, 7, 7]]


@pytest.mark.server
def test_models_share_no_module_and_threads_keep_what_is_theirs(odd):
    before = odd.launch.log.stat().st_size
    for model in ("other", "sleepy", "other"):
        infer(odd.grpc_url, np.full((1, 3), 70, np.float32), model)
    said = re.findall(r"W \d+ model\.py:\d+\] \"(.*) has 70, call (\d+)\"", odd.launch.log.read_text()[before:])
    assert [name for name, _ in said] == [f"neighbour of {each} of {each}" for each in ("other", "sleepy", "other")]
    assert int(said[2][1]) == int(said[0][1]) + 1


@pytest.mark.server
def test_nothing_but_the_server_runs(odd):
    assert tritonserver_of(odd._process.guard.pid).children(recursive=True) == []
    assert list(Path("/dev/shm").glob(f"{odd.launch.runtime.shm_prefix}*")) == []


@pytest.mark.server
def test_many_threads_are_answered_rightly(server_in_process, classify, encode):
    colours = ("red", "lime", "blue")
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda i: classify(server_in_process, [encode(colours[i % 3])]).argmax(), range(96)))
    assert found == [i % 3 for i in range(96)]


@pytest.mark.server
def test_threads_that_decode_step_back(server_in_process, classify, encode):
    for _ in range(4):
        classify(server_in_process, [encode("red")] * 8)
    process = tritonserver_of(server_in_process._process.guard.pid)
    stats = [Path(f"/proc/{process.pid}/task/{thread.id}/stat").read_text() for thread in process.threads()]
    niceness = [int(stat.rsplit(")", 1)[1].split()[16]) for stat in stats]
    own = psutil.Process().nice()
    assert sorted(set(niceness)) == sorted({own, max(13, own)})
    assert niceness.count(max(13, own)) in (1, 2) or own >= 13  # the instances that have executed


@pytest.mark.server
def test_a_model_that_ends_the_process_is_restarted(tmp_path):
    folder = write(tmp_path, ODD)
    (folder / "1" / "neighbour.py").write_text('NAME = "neighbour"\n')
    events = []
    with TritonServer(tmp_path, on_event=events.append, probe_interval=0.2) as server:
        with pytest.raises(InferenceServerException):
            infer(server.grpc_url, np.full((1, 1), 6, np.float32))
        end = time.monotonic() + 30
        while not (server.restarts and server.ready) and time.monotonic() < end:
            time.sleep(0.05)
        assert infer(server.grpc_url, np.full((1, 1), 7, np.float32)).tolist() == [[7]]
    assert "restarting" in events[0]


@pytest.mark.server
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import nowhere_to_be_found\n", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        (
            "class TritonPythonModel:\n    def initialize(self, args):\n        raise ValueError('no good')\n",
            "ValueError: no good",
        ),
    ],
)
def test_a_model_that_cannot_load_says_why(tmp_path, script, message):
    write(tmp_path, script)
    with pytest.raises(StartError) as failed:
        TritonServer(tmp_path).start()
    assert message in str(failed.value)


@pytest.mark.server
def test_a_python_that_cannot_run_the_bridge_is_named_for_each_model(tmp_path, monkeypatch):
    """The server asks the backend again for the second one."""
    for name in ("sleepy", "other"):
        write(tmp_path / "models", ODD, name=name)
    (tmp_path / "numpy.py").write_text("raise ImportError('broken')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    log = tmp_path / "server.log"
    with pytest.raises(StartError, match=r"code 1: .*Python cannot import"):
        TritonServer(tmp_path / "models", log_file=log).start()
    assert log.read_text().count("ImportError: broken") == 2


@pytest.mark.server
@pytest.mark.parametrize("models", ["repository", "repository_of_processes"])
@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [("max_pixels", 1599, "the image has 1600 pixels"), ("max_file_bytes", 90, r"the image is \d+ bytes")],
)
def test_a_limit_that_refuses_the_warm_up(request, tmp_path, models, limit, value, reason):
    """tritonserver would crash at its warm-up."""
    model = tmp_path / "preprocess"
    shutil.copytree(request.getfixturevalue(models) / "preprocess", model)
    with (model / "config.pbtxt").open("a") as config:
        config.write(f'parameters {{ key: "{limit}" value {{ string_value: "{value}" }} }}\n')
    if models == "repository":
        in_process(model)
    with pytest.raises(StartError, match=rf"refuse the warm-up's own picture, warmup/picture.*{reason}"):
        TritonServer(tmp_path).start()
