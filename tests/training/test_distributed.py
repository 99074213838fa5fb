"""Two gloo processes do what one would with twice the batch."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from models import create_model, load_checkpoint
from tests.training.runs import QUIET, ROOT, Tiny, assert_same, records, wait_for
from tests.training.two_processes import ACCUMULATED, METHODS, one_step
from training import distributed
from training.distributed import CpuSyncBatchNorm, backend, convert_sync_batchnorm
from training.finetune import train
from training.state import load_state

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
RUN = {"optimizer": "sgd", "lr": 1e-6, "drop_path": 0.0, "epochs": 1, "sync_bn": True}


@pytest.fixture(scope="module")
def folder(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two processes of torchrun wrote."""
    folder = tmp_path_factory.mktemp("two")
    config = tiny(folder / "run", batch_size=8, **RUN)
    names = (*RUN, "batch_size", "workers", "warmup_epochs", "ema_decay", "device")
    changes = {name: getattr(config, name) for name in names}
    changes |= {"data": str(config.data), "output": str(config.output)}
    command = [*TORCHRUN, "-m", "tests.training.two_processes", str(folder), json.dumps(changes)]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        assert process.wait(200) == 0
    finally:
        process.terminate()
    return folder


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_two_processes_is_one_with_twice_the_batch(name: str, folder: Path) -> None:
    """Loss, every gradient and the batch statistics, in float64."""
    loss, tensors = torch.load(folder / "results0.pt")["steps"][name]
    expected_loss, expected = one_step(METHODS[name])
    assert loss == pytest.approx(expected_loss, rel=1e-10)
    assert len(tensors) == len(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(tensors[key], tensor, rtol=1e-6, atol=1e-9 * (1 + tensor.abs().max().item()))


def test_a_run_of_two_processes_is_one_with_twice_the_batch(tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    """From the loader to the published checkpoint; a small rate, because rounding grows with every float32 step."""
    train(tiny(tmp_path, **RUN), QUIET)
    logs = [json.loads((output / "log.jsonl").read_text()) for output in (tmp_path, folder / "run")]
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-4)
    assert logs[0]["top1"] == logs[1]["top1"]
    ours, theirs = (load_checkpoint(output)[0].state_dict() for output in (tmp_path, folder / "run"))
    for key in ours:
        torch.testing.assert_close(theirs[key], ours[key], rtol=1e-3, atol=1e-4)


def test_accumulated_gradients_are_those_of_all_processes(tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    """A step moves the weights by up to 0.2; float32 rounds some of it away."""
    train(tiny(tmp_path, **{**RUN, **ACCUMULATED}, batch_size=8), QUIET)
    ours, theirs = (load_checkpoint(output)[0].state_dict() for output in (tmp_path, folder / "accumulated"))
    for key in ours:
        torch.testing.assert_close(theirs[key], ours[key], rtol=0, atol=0.01)


def test_statistics_of_their_own_are_averaged(tiny: Tiny, folder: Path, tmp_path: Path) -> None:
    """Without --sync-bn: the mean over both processes' images, in the first batch norm, before which all is alike."""
    train(tiny(tmp_path, **{**RUN, "sync_bn": False}), QUIET)
    ours, theirs = (load_checkpoint(output)[0].stem[0].bn.running_mean for output in (tmp_path, folder / "apart"))
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)


def test_each_process_draws_its_own_random_numbers(folder: Path) -> None:
    """With the same numbers both would drop the same paths and mix alike."""
    drawn = [number for rank in (0, 1) for number in torch.load(folder / f"results{rank}.pt")["drawn"]]
    assert len(set(drawn)) == len(drawn) == 2 * 6


def test_gradients_are_not_kept_beside_what_is_sent(folder: Path) -> None:
    assert [torch.load(folder / f"results{rank}.pt")["gradients"] for rank in (0, 1)] == [1, 1]


def test_the_queue_holds_the_keys_of_all_processes(folder: Path) -> None:
    assert [torch.load(folder / f"results{rank}.pt")["queue"] for rank in (0, 1)] == [[0, 2, 1, 2, -1]] * 2


def test_the_watch_is_over_the_images_of_all_processes(folder: Path) -> None:
    """Every answer is class 0, of which two of five images are."""
    assert [torch.load(folder / f"results{rank}.pt")["robust"] for rank in (0, 1)] == [2 / 5] * 2


def test_two_processes_resume(folder: Path) -> None:
    """They reach the same weights, with --sync-bn, and refuse a run that they find at different steps."""
    assert_same(folder / "whole", folder / "cut")
    assert records(folder / "whole") == records(folder / "cut")
    for rank, name in enumerate(("cut", "alone")):
        told = torch.load(folder / f"results{rank}.pt")["told"]
        assert f"find {folder / name / 'last'} at steps [2, 0]: give all machines one shared folder" in told
    assert not (folder / "alone").exists()


def test_on_gpus_what_lies_on_the_cpu_is_summed_too() -> None:
    devices = dist.BackendConfig(dist.Backend(backend("cuda:1"))).get_device_backend_map()
    assert devices == {"cpu": "gloo", "cuda": "nccl"}
    assert backend("cpu") == "gloo"


def test_sync_batch_norm_is_a_batch_norm() -> None:
    model = create_model("replknet_nano", 2)
    images = torch.randn(4, 3, 32, 32)
    expected = model.train()(images)
    converted = convert_sync_batchnorm(create_model("replknet_nano", 2), "cpu")
    assert isinstance(converted.norm, CpuSyncBatchNorm)
    converted.load_state_dict(model.state_dict())
    torch.testing.assert_close(converted.train()(images), expected)


def test_sync_batch_norm_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a second process had the same images: bf16 in and out, statistics in float32."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_sum", lambda tensor: 2 * tensor)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    synced = convert_sync_batchnorm(copy.deepcopy(plain), "cpu")
    with torch.autocast("cpu", torch.bfloat16):
        images = torch.randn(4, 3, 16, 16)
        outputs = [model(images) for model in (plain, synced)]
    assert outputs[1].dtype == torch.bfloat16
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0.02, atol=0.02)
    assert synced[1].running_var.dtype == torch.float32
    torch.testing.assert_close(synced[1].running_mean, plain[1].running_mean)
    torch.testing.assert_close(synced[1].running_var, plain[1].running_var, rtol=1e-3, atol=0)
    outputs[1].float().square().sum().backward()
    assert synced[0].weight.grad.isfinite().all()


@pytest.mark.slow
def test_torchrun(tiny: Tiny, tmp_path: Path) -> None:
    """Start torchrun as a user does; then send SIGTERM to it."""
    config = tiny(tmp_path / "run")
    options = ["--preset", "digits", "--data", str(config.data), "--output", str(config.output), "--epochs", "4"]
    options += ["--save-every", "1", "--batch-size", "8", "--sync-bn", "--device", "cpu"]
    command = [*TORCHRUN, "-m", "training.finetune", *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(config.output / "last/state.pt", process)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode != 0
    step = load_state(config.output / "last")["step"]
    assert error.count(f"stopped by SIGTERM after step {step};") == 2, error
    assert 0 < step < 24
    subprocess.run(command, cwd=ROOT, check=True, timeout=240)
    assert len((config.output / "log.jsonl").read_text().splitlines()) == 4
    load_checkpoint(config.output)
