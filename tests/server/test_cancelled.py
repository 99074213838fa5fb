"""A request whose sender has gone when its turn comes: neither backend computes it, or counts it as a failure."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch_models
import tritonclient.grpc as triton_grpc
from server_models import CPU, config, in_process, tensor, write_model
from tritonclient.utils import InferenceServerException

from server import TritonServer

pytestmark = pytest.mark.server
SLEEPS = """
import time
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        time.sleep(1)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", np.ones((1, 2), np.float32))]) for _ in requests]
"""


@pytest.mark.parametrize("backend", ["pytorch", "python_in_process"])
def test_it_is_no_failure(backend, tmp_path):
    if backend == "pytorch":
        torch_models.write(tmp_path, "slow", torch_models.Laborious(), ["x"], ["y"])
    else:
        x, y = (tensor(name, "FP32", [2]) for name in "xy")
        folder = write_model(tmp_path, config("slow", [x], [y], CPU % 1, "python"), "slow")
        in_process(folder)
        (folder / "1" / "model.py").write_text(SLEEPS)
    x = triton_grpc.InferInput("x", [1, 2], "FP32")
    x.set_data_from_numpy(np.full((1, 2), 250, np.float32))
    with (
        TritonServer(tmp_path) as server,
        triton_grpc.InferenceServerClient(server.grpc_url) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        first = pool.submit(client.infer, "slow", [x])
        time.sleep(0.1)
        with pytest.raises(InferenceServerException, match="Deadline"):
            client.infer("slow", [x], client_timeout=0.1)
        first.result(30)
        client.infer("slow", [x])
        (model,) = client.get_inference_statistics("slow").model_stats
    assert (model.inference_stats.success.count, model.inference_stats.fail.count) == (2, 0)
