"""The embedded server's pytorch backend in a real tritonserver: the native backend's rules, and who fails with whom."""

import concurrent.futures
import os
import struct
import time

import grpc
import numpy as np
import psutil
import pytest
import torch_models as models
import tritonclient.grpc as triton_grpc
from torch_models import write
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from benchmarks.resilience.footprint import tritonserver_of
from server import TritonServer

pytestmark = pytest.mark.server

WAIT = "dynamic_batching { max_queue_delay_microseconds: 300000 }\n"
WARM = "".join(
    f'model_warmup {{ name: "b{size}" batch_size: {size} count: 3\n'
    '  inputs { key: "x" value { data_type: TYPE_FP32 dims: [2] random_data: true } } }\n'
    for size in (1, 4)
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    pair = models.SumDifference()
    write(root, "by_argument", pair, ["b", "a"], ["total", "rest"])  # whatever the order
    write(root, "by_index", pair, ["R__1", "L__0"], ["D__1", "S__0"])
    write(root, "by_order", pair, ["left", "right"], ["s", "d"])
    write(root, "index_on_some", pair, ["left__0", "right"], ["s__1", "d"])  # which is no index
    write(root, "picky", models.Picky(), ["x"], ["y"], WAIT)
    write(root, "together", models.Sizes(), ["x"], ["y", "n:FP32:1"], WAIT, ENABLE_ONEDNN_FUSION="false")
    write(root, "apart", models.Sizes(), ["x:FP32:-1,2"], ["y:FP32:-1,2", "n:FP32:-1"], batch=0)
    write(root, "pieces", models.Sizes(), ["x"], ["y", "n:FP32:1"], WARM)
    write(root, "unfused", models.Sizes(), ["x"], ["y", "n:FP32:1"], WARM, ENABLE_ONEDNN_FUSION="false")
    write(root, "powers", models.Powers(), ["x"], ["y"])
    write(root, "stumbles", models.TupleWithInteger(), ["x"], ["y", "n:INT64:1"])
    write(root, "not_compiled", models.Heavy(), ["x"], ["y"])
    write(root, "any_width", pair, ["a:FP32:-1", "b:FP32:-1"], ["s:FP32:-1", "d:FP32:-1"], WAIT)
    write(root, "strided", models.Transposed(), ["x"], ["y:FP32:2,2"])
    write(root, "inference", models.IsInference(), ["x"], ["y"])
    write(root, "no_inference", models.IsInference(), ["x"], ["y"], INFERENCE_MODE="False")
    write(root, "renamed", models.Picky(), ["x"], ["y"], 'default_model_filename: "other.pt"', filename="other.pt")
    write(root, "threads_1", models.Busy(), ["x"], ["y"])
    write(root, "threads_3", models.Busy(), ["x"], ["y"], INTRA_OP_THREAD_COUNT="3", INTER_OP_THREAD_COUNT="1")
    write(root, "every_core", models.Busy(), ["x"], ["y"], INTRA_OP_THREAD_COUNT=str(len(os.sched_getaffinity(0))))
    shared = "instance_group [{ kind: KIND_CPU count: 2 }]\n"
    write(root, "shared", models.Picky(), ["x"], ["y"], shared, ENABLE_WEIGHT_SHARING="true", ENABLE_JIT_EXECUTOR="1")
    write(root, "lone", models.Heavy(), ["x"], ["y"], shared, LONE_THREAD_COUNT="3", ENABLE_WEIGHT_SHARING="true")
    alone = WAIT.replace("300000", "1000000") + WARM.replace("random_data", "zero_data")
    write(root, "without_input", models.Constant(), [], ["y:FP32:1,2"], batch=0)
    write(root, "lone_pieces", models.Sizes(), ["x"], ["y", "n:FP32:1"], WARM, LONE_THREAD_COUNT="2")
    write(root, "lone_laborious", models.Laborious(), ["x"], ["y"], alone, LONE_THREAD_COUNT="2")
    write(root, "lone_picky", models.Picky(), ["x"], ["y"], shared, LONE_THREAD_COUNT="2")
    write(root, "lone_stumbles", models.TupleWithInteger(), ["x"], ["y", "n:INT64:1"], shared, LONE_THREAD_COUNT="2")
    write(root, "scalar", models.Scalar(), ["x"], ["y"])
    write(root, "words", models.Words(), ["x"], ["y"])
    write(root, "fixed_batch", models.FixedBatch(), ["x"], ["y"])
    write(root, "wrong_dtype", models.TupleWithInteger(), ["x"], ["y", "n"], ENABLE_ONEDNN_FUSION="false")
    write(root, "wrong_index", models.SumDifference(), ["a", "b"], ["s__0", "d__2"])
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MKL_NUM_THREADS", "1")  # PyTorch's default comes from it; a model's own number counts more
        with TritonServer(root, log_file=root / "server.log") as running:
            running.log = root / "server.log"
            yield running


@pytest.fixture(scope="module")
def infer(server):
    """infer(model, name=values, ...) -> {output: array}"""
    with triton_grpc.InferenceServerClient(server.grpc_url) as client:

        def run(model, want=None, **inputs):
            tensors = []
            for name, values in inputs.items():
                array = np.asarray(values, np.float32)
                tensors.append(triton_grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
                tensors[-1].set_data_from_numpy(array)
            wanted = [triton_grpc.InferRequestedOutput(name) for name in want] if want else None
            result = client.infer(model, tensors, outputs=wanted)
            return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}

        run.client = client
        yield run


def together(infer, model, requests):
    """Sent side by side, so that the waiting batcher makes them one batch; results or errors in order."""
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        futures = [pool.submit(infer, model, **request) for request in requests]
    results = [future.exception() or future.result() for future in futures]
    (statistics,) = infer.client.get_inference_statistics(model).model_stats
    assert statistics.execution_count == 1  # one batch indeed
    return results


@pytest.mark.parametrize(
    ("model", "a", "b", "total", "difference"),
    [
        ("by_argument", "a", "b", "total", "rest"),
        ("by_index", "L__0", "R__1", "S__0", "D__1"),
        ("by_order", "left", "right", "s", "d"),
        ("index_on_some", "left__0", "right", "s__1", "d"),
    ],
)
def test_names(infer, model, a, b, total, difference):
    answer = infer(model, **{a: [[5, 6]], b: [[1, 2]]})
    assert answer[total].tolist() == [[6, 8]]
    assert answer[difference].tolist() == [[4, 4]]


def test_only_what_is_asked_for_is_sent(infer):
    assert list(infer("by_order", want=["d"], left=[[5, 6]], right=[[1, 2]])) == ["d"]


def test_a_failing_request_leaves_its_batch(infer):
    good, bad, two = together(infer, "picky", [{"x": [[1, 2]]}, {"x": [[-1, 3]]}, {"x": [[4, 5], [6, 7]]}])
    assert good["y"].tolist() == [[2, 4]]
    assert two["y"].tolist() == [[8, 10], [12, 14]]
    assert isinstance(bad, InferenceServerException)
    assert "negative input" in str(bad).splitlines()[0]  # TorchScript puts a traceback before it


def test_requests_run_as_one_batch_and_are_split_again(infer):
    one, two = together(infer, "together", [{"x": [[5, 6]]}, {"x": [[1, 2], [3, 4]]}])
    assert (one["y"].tolist(), two["y"].tolist()) == ([[5, 6]], [[1, 2], [3, 4]])
    assert (one["n"].tolist(), two["n"].tolist()) == ([3], [3, 3])


def test_requests_of_other_shapes_fail_or_run_alone(infer):
    """Where the batcher does not know that shapes differ (dims: -1), a batch of two cannot be made."""
    good = {"a": [[5, 6]], "b": [[1, 2]]}
    bad = {"a": [[1, 1, 1]], "b": [[1, 2]]}
    results = [infer("any_width", **good)]
    with pytest.raises(InferenceServerException, match=r"\A.*RuntimeError: The size of tensor a"):
        infer("any_width", **bad)
    assert results[0]["s"].tolist() == [[6, 8]]


@pytest.mark.parametrize("beside", [0, 1], ids=["alone", "in a batch"])
def test_a_batch_of_none_is_the_senders_mistake(infer, server, beside):
    """The server takes a batch of 0 for no batch dimension, and hands the tensor over without one."""
    request = service_pb2.ModelInferRequest(model_name="picky", raw_input_contents=[struct.pack("<2f", 1, 2)])
    request.inputs.add(name="x", datatype="FP32", shape=[0, 2])
    with grpc.insecure_channel(server.grpc_url) as channel, concurrent.futures.ThreadPoolExecutor() as pool:
        others = [pool.submit(infer, "picky", x=[[1, 2]]) for _ in range(beside)]
        with pytest.raises(grpc.RpcError) as refused:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request, timeout=30)
        assert all(other.result()["y"].tolist() == [[2, 4]] for other in others)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "input 'x' has no batch: the first number of its shape must be 1 or more" in refused.value.details()


def test_without_batching_requests_stay_apart(infer):
    assert infer("apart", x=[[1, 2], [3, 4]])["n"].tolist() == [2, 2]


def test_batches_run_in_warmed_up_sizes(infer):
    x = np.arange(14).reshape(7, 2)
    answer = infer("pieces", x=x)
    assert answer["n"].tolist() == [4, 4, 4, 4, 1, 1, 1]
    assert answer["y"].tolist() == x.tolist()
    assert infer("unfused", x=x)["n"].tolist() == [7] * 7
    assert infer("lone_pieces", x=x)["n"].tolist() == [1] * 7


def test_products_of_constants(infer):
    """PyTorch's own fusion pass ends the process here."""
    for value in (1, 2, 3):  # compiled at the second
        assert infer("powers", x=[[value, 5]])["y"].tolist() == [[value + 5, value + 5]]


def test_a_graph_that_onednn_fusion_stumbles_over_runs_without_it(infer, server):
    for _ in range(4):
        assert infer("stumbles", x=[[1, 2], [3, 4]])["n"].tolist() == [2, 2]
    assert server.log.read_text().count("/stumbles/1/model.pt: oneDNN graph fusion fails on this model") == 1


def test_a_graph_that_onednn_cannot_compile_runs_without_it(infer, server):
    for value in (1, 2, 3):  # compiled at the second
        assert infer("not_compiled", x=[[value, 0]])["y"] == pytest.approx(np.array([[value + np.e, np.e]]), rel=1e-6)
    assert server.log.read_text().count("not_compiled/1/model.pt: oneDNN graph fusion fails on this model") == 1


def test_a_model_without_fusion_keeps_its_threads(tmp_path, monkeypatch):
    """It is loaded again by the thread that computes, and loading takes one thread."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "2")
    write(tmp_path, "heavy", models.Heavy(), ["x"], ["y"], INTRA_OP_THREAD_COUNT=None)
    x = triton_grpc.InferInput("x", [1, 2], "FP32").set_data_from_numpy(np.ones((1, 2), np.float32))
    log = tmp_path / "server.log"
    with TritonServer(tmp_path, log_file=log) as server, triton_grpc.InferenceServerClient(server.grpc_url) as client:
        process = tritonserver_of(server._process.guard.pid)
        for _ in range(4):
            client.infer("heavy", [x])
        assert "oneDNN graph fusion fails on this model" in log.read_text()
        before = {thread.id: thread.user_time for thread in process.threads()}
        for _ in range(100):
            client.infer("heavy", [x])
        spent = [thread.user_time - before.get(thread.id, 0.0) for thread in process.threads()]
    assert sum(seconds > 0.15 * sum(spent) for seconds in spent) == 2


def test_a_model_without_inputs(infer):
    assert infer("without_input")["y"].tolist() == [[1, 1]]


def test_strided_outputs_are_made_contiguous(infer):
    assert infer("strided", x=[[5, 6]])["y"].tolist() == [[[5, 6], [6, 7]]]


def test_inference_mode(infer):
    assert infer("inference", x=[[0, 0]])["y"].tolist() == [[1, 1]]
    assert infer("no_inference", x=[[0, 0]])["y"].tolist() == [[0, 0]]


def test_default_model_filename(infer):
    assert infer("renamed", x=[[1, 2]])["y"].tolist() == [[2, 4]]


def test_shared_weights(infer):
    assert infer("shared", x=[[1, 2]])["y"].tolist() == [[2, 4]]


def listens(process, port):
    return port in [connection.laddr.port for connection in process.net_connections() if connection.status == "LISTEN"]


@pytest.fixture(scope="module")
def process(server):
    """tritonserver's process; other tests have theirs."""
    children = psutil.Process(os.getpid()).children(recursive=True)
    port = int(server.grpc_url.rpartition(":")[2])
    (process,) = [child for child in children if child.name() == "tritonserver" and listens(child, port)]
    return process


def test_each_model_has_its_own_threads(infer, process):
    def started(model):
        before = process.num_threads()
        infer(model, x=[[0, 0]])
        return process.num_threads() - before

    infer("renamed", x=[[1, 2]])  # the connection has its threads now
    assert started("threads_1") == 0
    assert started("threads_3") == 2


def test_a_model_on_every_core_has_a_thread_on_each(infer, process):
    cores = os.sched_getaffinity(0)
    if len(cores) < 2:
        pytest.skip("one core")

    def pinned():
        masks = [os.sched_getaffinity(thread.id) for thread in process.threads()]
        return sorted(next(iter(mask)) for mask in masks if len(mask) == 1)

    before = pinned()
    infer("every_core", x=[[0, 0]])
    assert pinned() == sorted(before + list(cores))


def test_a_request_alone_has_all_threads_and_others_their_own(infer, process):
    """The three threads are a team of their own, whichever instance takes the request; no instance ever has a team."""

    def computing(callers, share):
        """The threads that took more than a share of the time of the calls, with the answers."""
        before = {thread.id: thread.user_time for thread in process.threads()}
        with concurrent.futures.ThreadPoolExecutor(callers) as pool:
            answers = list(pool.map(lambda number: infer("lone", x=[[number, 0]])["y"], range(300)))
        spent = {thread.id: thread.user_time - before.get(thread.id, 0.0) for thread in process.threads()}
        return {id for id, seconds in spent.items() if seconds > share * sum(spent.values())}, np.concatenate(answers)

    threads = process.num_threads()
    infer("lone", x=[[0, 0]])
    assert process.num_threads() == threads + 2  # the team's leader has waited since the load
    computing(6, 0)  # every instance is warmed
    team, alone = computing(1, 0.15)  # 0.28 and more each; an instance 0.02, on a busy machine 0.05
    assert len(team) == 3
    threads = process.num_threads()
    several, beside = computing(6, 0.04)
    assert len(several - team) == 3  # the threads of the instances: count 1 and count 2
    assert process.num_threads() == threads
    np.testing.assert_allclose(alone, beside, rtol=1e-6)
    np.testing.assert_allclose(alone[:, 0], np.arange(300) + np.e, rtol=1e-6)


def test_a_request_alone_fails_as_any_other(infer):
    for _ in range(4):
        assert infer("lone_picky", x=[[1, 2]])["y"].tolist() == [[2, 4]]
        with pytest.raises(InferenceServerException, match="negative input"):
            infer("lone_picky", x=[[-1, 2]])
        assert infer("lone_stumbles", x=[[1, 2]])["n"].tolist() == [1]


def test_images_that_run_one_by_one_are_answered_one_by_one(infer):
    """The batcher hands all over at once; whoever came first does not wait for the last."""
    answered = {}

    def ask(*work):
        answers = infer("lone_laborious", x=[[times, 0] for times in work])["y"]
        answered[work] = time.monotonic()
        return answers.tolist()

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        futures = []
        for work in ((1,), (2, 3), (5000,)):
            futures.append(pool.submit(ask, *work))
            time.sleep(0.05)
    assert [future.result() for future in futures] == [[[1, 1]], [[2, 2], [2, 2]], [[1, 1]]]
    assert max(answered[1,], answered[2, 3]) < answered[5000,] - 0.1


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("scalar", "returned a scalar"),
        ("words", "returned String: it must return a tensor"),
        ("fixed_batch", "batch size 2 for a batch of 1"),
        ("wrong_dtype", "output 'n' is Long and config.pbtxt says Float"),
        ("wrong_index", "output 'd__2' means position 2, .* has 2"),
    ],
)
def test_a_wrong_output_is_an_error_of_the_request(infer, model, message):
    names = ["a", "b"] if model == "wrong_index" else ["x"]
    with pytest.raises(InferenceServerException, match=message):
        infer(model, **{name: [[1, 2]] for name in names})
