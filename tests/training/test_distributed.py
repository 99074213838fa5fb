"""Two gloo processes do what one would with twice the batch."""

import dataclasses
import json
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

from models import ModelConfig, create_model, load_checkpoint
from training import distributed
from training.config import Config
from training.distributed import CpuSyncBatchNorm, convert_sync_batchnorm
from training.finetune import train
from training.methods import make_learner
from training.paco import PaCo
from training.presets import PRESETS

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)
Tiny = Callable[..., Config]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def in_two_processes(function: Callable[..., None], *arguments: object) -> None:
    """function(*arguments, rank) in two forked processes that find each other as torchrun's do."""
    port, context = free_port(), multiprocessing.get_context("fork")

    def body(rank: int) -> None:
        os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        try:
            function(*arguments, rank)
        finally:
            distributed.shutdown()

    processes = [context.Process(target=body, args=(rank,)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


METHODS = {
    "plain": {},
    "logit_adjustment": {"loss": "logit_adjustment", "label_smoothing": 0.0},
    "advprop": {"adversarial": "advprop", "epsilon": 0.0},
}


def one_step(changes: dict, folder: Path | None, rank: int = 0) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one float64 step on 8 fixed images, or on this process's 4 of them."""
    torch.manual_seed(0)
    config = dataclasses.replace(PRESETS["digits"], **changes)
    model_config = ModelConfig("replknet_nano", 3, image_size=64)
    model = create_model("replknet_nano", 3)
    images, targets = torch.randn(8, 3, 64, 64).double(), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    if folder is not None:
        distributed.setup("cpu")
        convert_sync_batchnorm(model, "cpu")
        images, targets = images[4 * rank :][:4], targets[4 * rank :][:4]
    learner = make_learner(model, config, config, model_config, [5, 3, 2], 4).double().train()
    network = nn.parallel.DistributedDataParallel(learner, broadcast_buffers=False) if folder else learner
    loss = network(images, targets)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in learner.named_parameters()}
    statistics = {name: buffer for name, buffer in learner.named_buffers() if "running" in name}
    if folder is not None:
        loss = distributed.all_sum(loss) / 2
        if rank == 0:
            torch.save((loss.item(), gradients | statistics), folder / "step.pt")
    return loss.item(), gradients | statistics


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_two_processes_is_one_with_twice_the_batch(name: str, tmp_path: Path) -> None:
    """Loss, every gradient and the batch statistics, in float64."""
    in_two_processes(one_step, METHODS[name], tmp_path)
    loss, tensors = torch.load(tmp_path / "step.pt")
    expected_loss, expected = one_step(METHODS[name], None)
    assert loss == pytest.approx(expected_loss, rel=1e-10)
    assert len(tensors) == len(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(tensors[key], tensor, rtol=1e-6, atol=1e-9 * (1 + tensor.abs().max().item()))


def test_a_run_of_two_processes_is_one_with_twice_the_batch(tiny: Tiny, tmp_path: Path) -> None:
    """From the loader to the published checkpoint; a small rate, because rounding grows with every float32 step."""
    common = {"optimizer": "sgd", "lr": 1e-6, "drop_path": 0.0, "epochs": 1, "sync_bn": True}
    one, two = tiny(tmp_path / "one", **common), tiny(tmp_path / "two", batch_size=8, **common)
    train(one, QUIET)
    in_two_processes(lambda rank: train(two, QUIET))
    logs = [json.loads((config.output / "log.jsonl").read_text()) for config in (one, two)]
    assert logs[0]["loss"] == pytest.approx(logs[1]["loss"], rel=1e-4)
    assert logs[0]["top1"] == logs[1]["top1"]
    ours, theirs = (load_checkpoint(config.output)[0].state_dict() for config in (one, two))
    for key in ours:
        torch.testing.assert_close(theirs[key], ours[key], rtol=1e-3, atol=1e-4)


def test_the_queue_holds_the_keys_of_all_processes(tmp_path: Path) -> None:
    def fill(rank: int) -> None:
        distributed.setup("cpu")
        torch.manual_seed(0)
        learner = PaCo(create_model("replknet_nano", 3), [5, 3, 2], queue_size=5, dim=4)
        learner(torch.randn(2, 2, 3, 32, 32), torch.tensor([rank, 2]))
        assert learner.queue.labels.tolist() == [0, 2, 1, 2, -1]

    in_two_processes(fill)


def test_sync_batch_norm_is_a_batch_norm() -> None:
    model = create_model("replknet_nano", 2)
    images = torch.randn(4, 3, 32, 32)
    expected = model.train()(images)
    converted = convert_sync_batchnorm(create_model("replknet_nano", 2), "cpu")
    assert isinstance(converted.norm, CpuSyncBatchNorm)
    converted.load_state_dict(model.state_dict())
    torch.testing.assert_close(converted.train()(images), expected)


@pytest.mark.slow
def test_torchrun(tiny: Tiny, tmp_path: Path) -> None:
    """As a user starts it, and cut off by SIGTERM to its parent."""
    config = tiny(tmp_path / "run")
    options = ["--preset", "digits", "--data", str(config.data), "--output", str(config.output), "--epochs", "2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    command = [*torchrun, "-m", "training.finetune", *options, "--batch-size", "8", "--sync-bn", "--device", "cpu"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=240)
    assert len((config.output / "log.jsonl").read_text().splitlines()) == 2
    load_checkpoint(config.output)
