"""The embedded pytorch backend by itself: the native backend's rules, tried without a server."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

MODEL_FILE = Path(__file__).parents[2] / "server" / "backends" / "pytorch" / "model.py"


class FakeTensor:
    def __init__(self, name, tensor):
        self.name, self.tensor = name, tensor

    def to_dlpack(self):
        return self.tensor.__dlpack__()

    @classmethod
    def from_dlpack(cls, name, tensor):
        assert tensor.is_contiguous()  # the real one refuses strides
        return cls(name, tensor)


@pytest.fixture(scope="module")
def backend():
    """The module, with torch's process-wide switches put back afterwards."""
    warnings = []
    fake = ModuleType("triton_python_backend_utils")
    fake.Tensor, fake.TritonError = FakeTensor, str
    fake.Logger = SimpleNamespace(log_warn=warnings.append)
    fake.warnings = warnings
    fake.InferenceResponse = lambda output_tensors=None, error=None: SimpleNamespace(
        tensors={tensor.name: tensor.tensor for tensor in output_tensors or []}, error=error
    )
    fake.get_input_tensor_by_name = lambda request, name: FakeTensor(name, request[name])
    threads, fusion = torch.get_num_threads(), torch.jit.onednn_fusion_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", fake)
        spec = importlib.util.spec_from_file_location("torch_backend", MODEL_FILE)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    torch.set_num_threads(threads)
    torch.jit.enable_onednn_fusion(fusion)
    torch._C._set_graph_executor_optimize(True)


class SumDifference(torch.nn.Module):
    def forward(self, a, b):
        return a + b, a - b


class Scalar(torch.nn.Module):
    def forward(self, x):
        return x.sum()


class Words(torch.nn.Module):
    def forward(self, x):
        return ["word"]


class FixedBatch(torch.nn.Module):
    def forward(self, x):
        return torch.zeros(2, 2)


class Transposed(torch.nn.Module):
    def forward(self, x):
        return torch.stack([x, x + 1], dim=0).permute(1, 2, 0)


class Modes(torch.nn.Module):
    """Its input, and what batch size it was called with."""

    def forward(self, x):
        return x, torch.full((x.shape[0],), x.shape[0], dtype=torch.int64)


def tensors(names, data_type="TYPE_FP32"):
    return [{"name": name, "data_type": data_type, "dims": [2]} for name in names]


def as_config(names):
    return [tensors([name])[0] if isinstance(name, str) else name for name in names]


@pytest.fixture
def load(backend, tmp_path):
    """load(module, inputs, outputs, **config) -> an initialised instance."""

    def build(script, inputs, outputs, parameters=None, **rest):
        folder = tmp_path / "model" / "1"
        folder.mkdir(parents=True, exist_ok=True)
        if script is not None:
            torch.jit.script(script).save(str(folder / rest.get("default_model_filename", "model.pt")))
        config = {
            "max_batch_size": 8,
            "input": as_config(inputs),
            "output": as_config(outputs),
            "parameters": {key: {"string_value": value} for key, value in (parameters or {}).items()},
            **rest,
        }
        model = backend.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps(config),
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
                "model_repository": str(folder.parent),
                "model_version": "1",
            }
        )
        return model

    return build


A, B = torch.tensor([[5.0, 6.0]]), torch.tensor([[1.0, 2.0]])


@pytest.mark.parametrize(
    ("inputs", "outputs", "total", "difference"),
    [
        (["a", "b"], ["s", "d"], "s", "d"),
        (["b", "a"], ["s", "d"], "s", "d"),  # by argument name, whatever the order
        (["R__1", "L__0"], ["d__1", "s__0"], "s__0", "d__1"),  # by index
        (["left", "right"], ["s", "d"], "s", "d"),  # by order
        (["left__0", "right"], ["s__1", "d"], "s__1", "d"),  # an index on some is none
    ],
)
def test_names(load, inputs, outputs, total, difference):
    model = load(SumDifference(), inputs, outputs)
    values = {name: A if name[0] in "aLl" else B for name in inputs}
    (response,) = model.execute([values])
    assert response.error is None
    assert response.tensors[total].tolist() == [[6, 8]]
    assert response.tensors[difference].tolist() == [[4, 4]]


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (["a"], ["s"], r"1 inputs, forward\(\) takes 2: \['a', 'b'\]"),
        (["x__0", "y__0"], ["s"], "both mean position 0"),
        (["x__0", "y__2"], ["s"], r"'y__2' means position 2, forward\(\) has 2"),
        (["a", "b"], ["s__0", "d__0"], "output 's__0' and another both mean position 0"),
        (["a", "b"], [], "no output"),
        (tensors(["a", "b"], "TYPE_STRING"), ["s"], "TYPE_STRING"),
    ],
)
def test_a_wrong_config_stops_the_load(load, inputs, outputs, message):
    with pytest.raises(ValueError, match=message):
        load(SumDifference(), inputs, outputs)


def test_weights_are_missing(load):
    with pytest.raises(FileNotFoundError, match="build the repository first"):
        load(None, ["x"], ["y"])


def test_default_model_filename(load):
    assert load(Scalar(), ["x"], ["y"], default_model_filename="other.pt").model is not None


@pytest.mark.parametrize(
    ("script", "outputs", "message"),
    [
        (Scalar(), ["y"], "returned a scalar"),
        (Words(), ["y"], "returned str"),
        (FixedBatch(), ["y"], "batch size 2 for a batch of 1"),
        (Modes(), ["y", "n"], "output 'n' is torch.int64 and config.pbtxt says torch.float32"),
        (Modes(), ["y__0", "n__2"], r"position 2, forward\(\) has 2"),
    ],
    ids=["scalar", "words", "fixed-batch", "dtype", "index"],
)
def test_a_wrong_output_is_an_error_of_the_request(load, script, outputs, message):
    import re

    (response,) = load(script, ["x"], outputs).execute([{"x": A}])
    assert re.search(message, response.error), response.error


def test_requests_run_as_one_batch_and_are_split_again(load):
    outputs = [*tensors(["y"]), *tensors(["n"], "TYPE_INT64")]
    model = load(Modes(), ["x"], outputs)
    responses = model.execute([{"x": A}, {"x": torch.cat([B, B])}])
    assert [response.tensors["y"].tolist() for response in responses] == [A.tolist(), B.tolist() * 2]
    assert [response.tensors["n"].tolist() for response in responses] == [[3], [3, 3]]


def test_batches_run_in_warmed_up_sizes(load):
    outputs = [*tensors(["y"]), *tensors(["n"], "TYPE_INT64")]
    model = load(Modes(), ["x"], outputs, model_warmup=[{"batch_size": 1}, {"batch_size": 4}, {"batch_size": 4}])
    x = torch.arange(14.0).view(7, 2)
    (response,) = model.execute([{"x": x}])
    assert response.tensors["n"].tolist() == [4, 4, 4, 4, 1, 1, 1]
    assert torch.equal(response.tensors["y"], x)


@pytest.mark.parametrize(
    ("count", "sizes", "pieces"),
    [(7, [1, 4], [4, 1, 1, 1]), (4, [4], [4]), (3, [2], [2, 1]), (1, [2, 8], [1]), (8, [8, 1], [8])],
)
def test_split_batch(backend, count, sizes, pieces):
    assert backend.split_batch(count, sizes) == pieces


def test_requests_of_other_shapes_fail_or_run_alone(load):
    model = load(SumDifference(), ["a", "b"], ["s"])
    good, odd = {"a": A, "b": B}, {"a": torch.ones(1, 3), "b": torch.ones(1, 3)}
    bad = {"a": torch.ones(1, 3), "b": B}
    responses = model.execute([good, odd, bad])
    assert responses[0].tensors["s"].tolist() == [[6, 8]]
    assert responses[1].tensors["s"].tolist() == [[2, 2, 2]]
    assert "RuntimeError" in responses[2].error


def test_without_batching_requests_stay_apart(load):
    outputs = [*tensors(["y"]), *tensors(["n"], "TYPE_INT64")]
    model = load(Modes(), ["x"], outputs, max_batch_size=0)
    responses = model.execute([{"x": A}, {"x": B}])
    assert [response.tensors["n"].tolist() for response in responses] == [[1], [1]]


def test_strided_outputs_are_made_contiguous(load):
    (response,) = load(Transposed(), ["x"], ["y"]).execute([{"x": A}])
    assert response.tensors["y"].tolist() == [[[5, 6], [6, 7]]]


def failing(message):
    def forward(*tensors):
        raise RuntimeError(message)

    return forward


def test_a_graph_that_onednn_fusion_stumbles_over_runs_without_it(load, backend):
    """torch 2.15 says this of a saved graph that returns a tuple with an integer torch.full in it."""
    backend.pb_utils.warnings.clear()
    model = load(SumDifference(), ["a", "b"], ["s"])
    assert model.fused
    model.model = failing("Schema not found for node. File a bug report.")
    (response,) = model.execute([{"a": A, "b": B}])
    assert response.tensors["s"].tolist() == [[6, 8]]
    assert not torch.jit.onednn_fusion_enabled()
    assert len(backend.pb_utils.warnings) == 1
    model.model = failing("Schema not found for node. File a bug report.")  # not fused: the model's own failure now
    assert "bug report" in model.execute([{"a": A, "b": B}])[0].error


def test_another_error_does_not_turn_fusion_off(load):
    model = load(SumDifference(), ["a", "b"], ["s"])
    model.model = failing("sizes do not match")
    assert "sizes do not match" in model.execute([{"a": A, "b": B}])[0].error
    assert model.fused


def test_fusion_can_be_turned_off(load):
    load(SumDifference(), ["a", "b"], ["s"], {"ENABLE_ONEDNN_FUSION": "false"})
    assert not torch.jit.onednn_fusion_enabled()


@pytest.mark.parametrize(("value", "inference"), [(None, True), ("true", True), ("False", False)])
def test_inference_mode(load, value, inference):
    model = load(SumDifference(), ["a", "b"], ["s"], {"INFERENCE_MODE": value} if value else None)
    (output,) = model._call([A.clone().requires_grad_(), B])
    assert output.is_inference() == inference
    assert not output.requires_grad


def test_process_wide_switches(load):
    parameters = {
        "INTRA_OP_THREAD_COUNT": "3",
        "DISABLE_OPTIMIZED_EXECUTION": "true",
        "DISABLE_CUDNN": "true",
        "ENABLE_TENSOR_FUSER": "false",
        "ENABLE_WEIGHT_SHARING": "true",
        "ENABLE_CACHE_CLEANING": "true",
    }
    before = torch._C._jit_texpr_fuser_enabled()
    try:
        load(SumDifference(), ["a", "b"], ["s"], parameters)
        assert torch.get_num_threads() == 3
        assert not torch._C._get_graph_executor_optimize()
        assert not torch.backends.cudnn.enabled
        assert not torch._C._jit_texpr_fuser_enabled()
        assert torch.jit.onednn_fusion_enabled()
    finally:
        torch.backends.cudnn.enabled = True
        torch._C._jit_set_texpr_fuser_enabled(before)
    load(SumDifference(), ["a", "b"], ["s"], {"INTRA_OP_THREAD_COUNT": "1"})
    assert torch._C._get_graph_executor_optimize()


@pytest.mark.parametrize("name", ["ENABLE_JIT_EXECUTOR", "ENABLE_JIT_PROFILING"])
def test_executor_switches(load, monkeypatch, name):
    calls = []
    monkeypatch.setattr(torch._C, "_jit_set_profiling_executor", lambda on: calls.append(("ENABLE_JIT_EXECUTOR", on)))
    monkeypatch.setattr(torch._C, "_jit_set_profiling_mode", lambda on: calls.append(("ENABLE_JIT_PROFILING", on)))
    load(SumDifference(), ["a", "b"], ["s"])
    assert calls == []
    load(SumDifference(), ["a", "b"], ["s"], {name: "false"})
    assert calls == [(name, False)]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("INFERENCE_MODE", "yes", 'INFERENCE_MODE is "yes"'),
        ("INTRA_OP_THREAD_COUNT", "0", 'INTRA_OP_THREAD_COUNT is "0"'),
        ("INTER_OP_THREAD_COUNT", "two", 'INTER_OP_THREAD_COUNT is "two"'),
    ],
)
def test_wrong_parameters(load, name, value, message):
    with pytest.raises(ValueError, match=message):
        load(SumDifference(), ["a", "b"], ["s"], {name: value})


def test_library(load, monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setenv("WIDEFIELD_LIBRARY", str(tmp_path / "none.so"))
    with pytest.raises(FileNotFoundError, match=r"none\.so"):
        load(SumDifference(), ["a", "b"], ["s"])
    (tmp_path / "some.so").touch()
    monkeypatch.setenv("WIDEFIELD_LIBRARY", str(tmp_path / "some.so"))
    load(SumDifference(), ["a", "b"], ["s"])
    assert loaded == [str(tmp_path / "some.so")]
