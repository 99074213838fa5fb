"""One of two processes of test_distributed.py: argv is the folder for the results and a JSON of `Config` changes."""

import dataclasses
import faulthandler
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from models import ModelConfig, create_model
from tests.training.runs import QUIET, Killed, before_step, die
from training import distributed
from training.adversarial import OverfittingWatch
from training.attacks import PixelModel
from training.distributed import convert_sync_batchnorm
from training.finetune import train
from training.finetune_config import Config
from training.loop import Learner
from training.methods import make_learner
from training.paco import PaCo
from training.presets import PRESETS
from training.settings import SettingsError

CPU = torch.device("cpu")
METHODS: dict[str, dict] = {
    "plain": {},
    "logit_adjustment": {"loss": "logit_adjustment", "label_smoothing": 0.0},
    "advprop": {"adversarial": "advprop", "epsilon": 0.0},
    "checkpointed": {"grad_checkpointing": True},
}
ACCUMULATED = {"lr": 0.01, "warmup_epochs": 0.0, "global_batch_size": 96}  # one step: rounding grows with every one


def one_step(changes: dict) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss, gradients and statistics of a float64 step on 8 fixed images, of which each process has its share."""
    torch.manual_seed(0)
    rank, world = distributed.rank(), distributed.world_size()
    config = dataclasses.replace(PRESETS["digits"], **changes)
    model = convert_sync_batchnorm(create_model("replknet_nano", 3), "cpu")
    if config.grad_checkpointing:
        model.set_grad_checkpointing()
    images, targets = torch.randn(8, 3, 64, 64).double(), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    images, targets = images.chunk(world)[rank], targets.chunk(world)[rank]
    learner = make_learner(model, config, ModelConfig("replknet_nano", 3, image_size=64), [5, 3, 2])
    learner = learner.double().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network = distributed.data_parallel(learner, CPU) if world > 1 else learner
    loss = network(images, targets)
    loss.backward()
    tensors = {name: parameter.grad for name, parameter in learner.named_parameters()}
    tensors |= {name: buffer for name, buffer in learner.named_buffers() if "running" in name}
    return distributed.all_sum(loss.detach()).item() / world, tensors


def gradients_memory() -> int:
    """How many pieces of memory hold the gradients of two small layers."""
    network = distributed.data_parallel(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)), CPU)
    network(torch.ones(1, 4)).sum().backward()
    return len({parameter.grad.untyped_storage().data_ptr() for parameter in network.parameters()})


def queue_labels() -> list[int]:
    """Return the labels of a queue of 5 after one batch of 2 images in each process, labels [rank, 2]."""
    torch.manual_seed(0)
    learner = PaCo(create_model("replknet_nano", 3), [5, 3, 2], queue_size=5, dim=4)
    learner(torch.randn(2, 2, 3, 32, 32), torch.tensor([distributed.rank(), 2]))
    return learner.queue.labels.tolist()


def robust() -> float:
    """The robust accuracy that Fast-AT's watch measures on 5 images, two of them in one process."""
    torch.manual_seed(0)
    images = TensorDataset(torch.randn(5, 3, 32, 32), torch.tensor([0, 0, 1, 1, 2]))
    images.targets = images.tensors[1].tolist()
    network = create_model("replknet_nano", 3).eval()
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([100.0, 0.0, 0.0]))
    watch = OverfittingWatch(torch.nn.Module(), images, 1, epsilon=0.0)
    return watch(PixelModel(network, [0.5] * 3, [0.5] * 3), "cpu")


def cut_and_resumed(config: Config) -> str:
    """A run in cut/ that is interrupted and resumed, and one in whole/; and process 1's error in another folder."""
    config = dataclasses.replace(config, lr=4e-3, optimizer="adamw", epochs=2, save_every=2)
    train(dataclasses.replace(config, output=config.output / "whole"), QUIET)
    cut = dataclasses.replace(config, output=config.output / "cut")
    with pytest.MonkeyPatch.context() as patch:
        before_step(3, die, patch)
        with pytest.raises(Killed):
            train(cut, QUIET)
    alone = dataclasses.replace(config, output=config.output / "alone")
    with pytest.raises(SettingsError) as told:
        train(alone if distributed.rank() else cut, QUIET)
    train(cut, QUIET)
    return str(told.value)


def main() -> None:
    warnings.simplefilter("error", FutureWarning)
    warnings.filterwarnings("error", "Grad strides do not match")
    folder, changes = Path(sys.argv[1]), json.loads(sys.argv[2])
    faulthandler.dump_traceback_later(150, exit=True)  # says where a process waits for the other
    torch.set_num_threads(1)
    distributed.setup("cpu")
    results: dict = {"steps": {name: one_step(method) for name, method in METHODS.items()}, "queue": queue_labels()}
    results |= {"robust": robust(), "gradients": gradients_memory()}
    changes |= {"data": Path(changes["data"]), "output": Path(changes["output"])}
    config = dataclasses.replace(PRESETS["digits"], **changes)
    train(config, QUIET)
    results["drawn"] = []  # where nothing else draws
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "after_step", lambda _: results["drawn"].append(torch.rand(()).item()))
        train(dataclasses.replace(config, sync_bn=False, output=folder / "apart"), QUIET)
    train(dataclasses.replace(config, **ACCUMULATED, batch_size=4, output=folder / "accumulated"), QUIET)
    results["told"] = cut_and_resumed(dataclasses.replace(config, output=folder))
    torch.save(results, folder / f"results{distributed.rank()}.pt")
    distributed.shutdown()


if __name__ == "__main__":
    main()
