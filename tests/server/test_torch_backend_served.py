"""The embedded pytorch backend in a real tritonserver: names, two tensors, and a failing request inside a batch."""

import concurrent.futures

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def client(odd_repository):
    from server import TritonServer

    with TritonServer(odd_repository) as server, triton_grpc.InferenceServerClient(server.grpc_url) as client:
        yield client


def infer(client, model, **inputs):
    tensors = []
    for name, values in inputs.items():
        array = np.asarray(values, np.float32)
        tensors.append(triton_grpc.InferInput(name, list(array.shape), "FP32"))
        tensors[-1].set_data_from_numpy(array)
    return client.infer(model, tensors)


def test_names(client):
    left, right = [[5.0, 6.0]], [[1.0, 2.0]]
    answer = infer(client, "by_argument", a=left, b=right)
    np.testing.assert_array_equal(answer.as_numpy("total"), [[6, 8]])
    np.testing.assert_array_equal(answer.as_numpy("rest"), [[4, 4]])
    answer = infer(client, "by_index", L__0=left, R__1=right)
    np.testing.assert_array_equal(answer.as_numpy("S__0"), [[6, 8]])
    np.testing.assert_array_equal(answer.as_numpy("D__1"), [[4, 4]])


def test_a_failing_request_leaves_its_batch(client):
    """The batcher waits 300 ms, so these run as one batch; one of them makes forward() raise."""
    values = [[[1.0, 2.0]], [[-1.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        good, bad, two = [pool.submit(infer, client, "picky", x=value) for value in values]
        np.testing.assert_array_equal(good.result().as_numpy("y"), [[2, 4]])
        np.testing.assert_array_equal(two.result().as_numpy("y"), [[8, 10], [12, 14]])
        with pytest.raises(InferenceServerException, match="negative input"):
            bad.result()
    statistics = client.get_inference_statistics("picky", as_json=True)["model_stats"][0]
    assert int(statistics["execution_count"]) == 1  # one batch indeed
