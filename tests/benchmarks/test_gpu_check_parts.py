"""The end-to-end and the served part of `make gpu-check` on a faked GPU: what they hold right, and what they find."""

import importlib.util
import json
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import harness
from benchmarks.gpu_check import SKIPPED, end_to_end, served
from benchmarks.kernels.tables import end_to_end_table
from benchmarks.served import random_network
from benchmarks.timing import Timing
from export.parity import real_pixels
from kernels import depthwise_conv2d


@pytest.fixture
def tiny(fake_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    torch.manual_seed(0)
    return tmp_path


def test_end_to_end_on_a_small_model(tiny, monkeypatch, capsys):
    monkeypatch.setattr(end_to_end.comparisons, "__defaults__", ((2,),))
    (tiny / "tiles.json").write_text('{"a shape": "taps"}')
    monkeypatch.setenv("WIDEFIELD_TILES", str(tiny / "tiles.json"))
    assert end_to_end.main("replknet_nano", 64, "cpu", 2) == 0
    document = json.loads((tiny / "end_to_end_fake_h200.json").read_text())
    assert document["gpu"]["tf32"] == {"matmul": False, "cudnn": False}
    assert document["tuned"] == {"a shape": "taps"}
    step, inference = document["training step"], document["inference"]
    assert (step["batch"], step["depthwise_calls"]) == (2, 10)  # five blocks, two branches
    assert inference["depthwise_calls"] == 5  # one operator each
    assert list(step["ms"]) == ["widefield", "eager", "widefield channels_last", "eager channels_last"]
    columns = [f"{name}, ms" for name in ("Widefield", "eager", "Widefield channels_last", "eager channels_last")]
    assert f"| what | batch | {' | '.join(columns)} | x eager |" in "\n".join(end_to_end_table(document))
    assert step["speedup_over_eager"] == inference["speedup_over_eager"] == 1
    assert "wanted 3.0x: NOT MET" in capsys.readouterr().out


def test_end_to_end_refuses_a_wrong_answer(tiny, monkeypatch):
    def turned(input, weight, *rest):  # a factor would be lost in the batch norm that follows
        return depthwise_conv2d(input, weight.flip(2, 3), *rest)

    monkeypatch.setattr(end_to_end, "depthwise_conv2d", turned)
    with pytest.raises(ValueError, match="of the norm with the operator"):
        end_to_end.comparisons("replknet_nano", 64, "cpu", 2, (2,))["training step"]()


def test_the_batch_that_is_timed_is_checked_and_a_part_of_it_where_float32_has_no_memory(monkeypatch):
    """Kernels are compiled for one batch: for a second one in the check alone they would take the part's time."""
    layer, images = torch.nn.Conv2d(4, 4, 5, padding=2, groups=4), torch.randn(20, 4, 6, 6)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    seen = []

    def work(most, model, images, precise=False):
        seen.append(len(images))
        if precise and len(images) > most:
            raise torch.OutOfMemoryError
        return end_to_end.infer(model, images)

    assert end_to_end.check_what_fits(layer, images, partial(work, 20))[1] == 1
    assert seen == [20] * 5
    seen.clear()
    end_to_end.check_what_fits(layer, images, partial(work, 8))
    assert seen == [20, *[end_to_end.CHECKED_IMAGES] * 5]
    with pytest.raises(torch.OutOfMemoryError):
        end_to_end.check_what_fits(layer, images[:8], partial(work, 7))


@pytest.mark.parametrize("lost", ["training step", "inference"])
def test_a_comparison_that_fails_does_not_lose_the_other(tiny, monkeypatch, capsys, lost):
    monkeypatch.setattr(end_to_end.comparisons, "__defaults__", ((2,),))
    name = {"training step": "training_step", "inference": "infer"}[lost]
    monkeypatch.setattr(end_to_end, name, lambda *_: (_ for _ in ()).throw(RuntimeError("an illegal address\nmore")))
    assert end_to_end.main("replknet_nano", 64, "cpu", 2) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"{lost}: RuntimeError: an illegal address"
    document = json.loads((tiny / "end_to_end_fake_h200.json").read_text())
    assert {"training step", "inference"} - document.keys() == {lost}


def test_the_optimiser_s_state_follows_the_weights(tiny, monkeypatch):
    """CUDA's fused AdamW refuses state whose strides differ from its parameter's; the CPU's accepts it."""
    steps = []

    class Strict(torch.optim.AdamW):
        def step(self):
            parameters = self.param_groups[0]["params"]
            for parameter in parameters:
                moments = [value for value in self.state[parameter].values() if value.dim()]
                for tensor in (parameter.grad, *moments):
                    sides = zip(parameter.shape, parameter.stride(), tensor.stride(), strict=True)
                    assert all(ours == its for size, ours, its in sides if size > 1)
            steps.append(parameters[0].stride())
            super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Strict)
    training = end_to_end.comparisons("replknet_nano", 64, "cpu", 2, (2,))["training step"]()
    rounds = len(steps) // 4
    assert steps == steps[:4] * rounds
    assert (steps[0] == steps[1], steps[0] == steps[2], steps[2] == steps[3]) == (True, False, True)
    assert {timing.calls for timing in training["ms"].values()} == {rounds - 2}  # the check, and the warm-up


def test_a_slow_variant_does_not_stretch_the_comparison(tiny, monkeypatch):
    monkeypatch.setattr(end_to_end, "SECONDS", -1.0)
    model, images = torch.nn.Conv2d(4, 4, 5, padding=2, groups=4), torch.randn(1, 4, 6, 6)
    row = end_to_end.compare(model, images, end_to_end.infer, 50)
    assert {timing.calls for timing in row["ms"].values()} == {end_to_end.LEAST_ROUNDS}


def test_end_to_end_refuses_variants_that_differ_in_work(monkeypatch):
    layer, images = torch.nn.Conv2d(4, 4, 5, padding=2, groups=4), torch.randn(1, 4, 6, 6)
    errors, calls = end_to_end.check(layer, images, end_to_end.infer)
    assert calls == 1
    assert max(max(each) for each in errors.values()) < 1e-5
    with pytest.raises(ValueError, match="must be as many"):
        end_to_end.check(torch.nn.Conv2d(4, 4, 3, padding=1, groups=4), images, end_to_end.infer)  # 3 x 3: none


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_end_to_end_refuses_a_wrong_gradient(layout):
    layer, images = torch.nn.Conv2d(4, 4, 5, padding=2, groups=4), torch.randn(1, 4, 6, 6)
    # eager in float32, ours, eager, both again in channels_last
    answers = iter([2.0, *{"contiguous": (2.01, 2.001, 2.001), "channels_last": (2.001, 2.001, 2.01)}[layout], 2.001])

    def work(model, images, precise=False):
        return [model(images).detach(), torch.full((3,), next(answers))]

    with pytest.raises(
        ValueError, match=r"the gradient: off float32 by 0\.005 of the norm with the operator, 0\.0005 eager"
    ):
        end_to_end.check(layer, images, work)


def test_the_model_is_as_it_was_afterwards():
    from models import create_model

    model = create_model("replknet_nano").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(images)
        with end_to_end.depthwise_by(model, end_to_end.eager) as calls:
            torch.testing.assert_close(model(images), before, rtol=1e-3, atol=1e-4)
        assert calls == [10]
        assert torch.equal(model(images), before)
    assert calls == [10]


@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_the_eager_stand_in_is_the_operator(activation):
    arguments = torch.randn(2, 4, 9, 7), torch.randn(4, 1, 5, 7), torch.randn(4), activation
    torch.testing.assert_close(end_to_end.eager(*arguments), depthwise_conv2d(*arguments), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(end_to_end.eager(*arguments[:2]), F.conv2d(*arguments[:2], padding=(2, 3), groups=4))


@pytest.mark.usefixtures("fake_gpu")
def test_a_batch_that_fits_is_found():
    tried = []

    def run(batch):
        tried.append(batch)
        if batch > 16:
            raise torch.OutOfMemoryError("CUDA out of memory\nmore")
        return {"ms": Timing(1, 1, 1, 1)}

    assert end_to_end.what_fits((64, 32, 16, 8), run)["batch"] == 16
    assert tried == [64, 32, 16]
    with pytest.raises(ValueError, match="no batch of"):
        end_to_end.what_fits((64, 32), run)


def test_no_server_is_a_skip_with_the_reason(monkeypatch, capsys):
    monkeypatch.setenv("TRITONSERVER", "/nowhere/tritonserver")
    assert served.main() == SKIPPED
    assert "/nowhere/tritonserver" in capsys.readouterr().out
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert served.main() == SKIPPED
    assert "psutil is not installed" in capsys.readouterr().out


def test_a_server_that_answers_otherwise_fails(monkeypatch):
    monkeypatch.setattr(served, "missing", lambda: None)
    for distance in (0.1, float("nan")):
        monkeypatch.setattr(served, "serve", lambda folder, distance=distance: (distance, 4))
        assert served.main() == 1
    monkeypatch.setattr(served, "serve", lambda folder: (0.001, 4))
    assert served.main() == 0


def test_the_answer_for_another_image_is_refused(monkeypatch, tmp_path):
    """At random weights as they are drawn its probabilities are the same to 1 in 10,000."""
    network, config = random_network("replknet_nano", 64)
    images = real_pixels(None, 64, 4).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    with torch.inference_mode():
        answers = network((images - mean) / std).softmax(1).split(1)
    right = dict(zip("abcd", answers, strict=True))

    def infer(turn):
        inputs = iter("abcd"[turn:] + "abcd"[:turn])
        return lambda *_: SimpleNamespace(as_numpy=lambda name: right[next(inputs)].numpy() * (1 + 1e-4))

    monkeypatch.setattr("benchmarks.photographs.turned", lambda: list(right))
    monkeypatch.setattr("benchmarks.served.random_network", lambda arch: (network, config))
    monkeypatch.setattr("benchmarks.served.bare_pipeline", lambda *_: right.__getitem__)
    monkeypatch.setattr("export.build.build", lambda options: None)
    monkeypatch.setattr("server.TritonServer", lambda *_: nullcontext(SimpleNamespace(grpc_url="")), raising=False)
    for turn, refused in ((0, False), (1, True)):
        client = SimpleNamespace(infer=infer(turn))
        monkeypatch.setattr("tritonclient.grpc.InferenceServerClient", lambda url, client=client: nullcontext(client))
        distance, images = served.serve(tmp_path)
        assert (distance > served.TOLERANCE, images) == (refused, 4)


@pytest.mark.slow
@pytest.mark.server
def test_a_real_server_is_held_to_the_same_file_in_one_process(tmp_path):
    distance, images = served.serve(tmp_path)
    assert distance <= served.TOLERANCE
    assert images == 4
