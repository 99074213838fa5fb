"""One of two processes of test_distributed.py: argv is the folder for the results and a JSON of `Config` changes."""

import dataclasses
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from models import ModelConfig, create_model
from training import distributed
from training.distributed import convert_sync_batchnorm
from training.finetune import train
from training.methods import make_learner
from training.paco import PaCo
from training.presets import PRESETS

METHODS: dict[str, dict] = {
    "plain": {},
    "logit_adjustment": {"loss": "logit_adjustment", "label_smoothing": 0.0},
    "advprop": {"adversarial": "advprop", "epsilon": 0.0},
}


def one_step(changes: dict) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss, gradients and statistics of a float64 step on 8 fixed images, of which each process has its share."""
    torch.manual_seed(0)
    rank, world = distributed.rank(), distributed.world_size()
    config = dataclasses.replace(PRESETS["digits"], **changes)
    model = convert_sync_batchnorm(create_model("replknet_nano", 3), "cpu")
    images, targets = torch.randn(8, 3, 64, 64).double(), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    images, targets = images.chunk(world)[rank], targets.chunk(world)[rank]
    learner = make_learner(model, config, config, ModelConfig("replknet_nano", 3, image_size=64), [5, 3, 2], 4)
    learner = learner.double().train()
    network = nn.parallel.DistributedDataParallel(learner, broadcast_buffers=False) if world > 1 else learner
    loss = network(images, targets)
    loss.backward()
    tensors = {name: parameter.grad for name, parameter in learner.named_parameters()}
    tensors |= {name: buffer for name, buffer in learner.named_buffers() if "running" in name}
    return distributed.all_sum(loss.detach()).item() / world, tensors


def queue_labels() -> list[int]:
    """Of a queue of 5 after one batch of 2 images in each process, labels [rank, 2]."""
    torch.manual_seed(0)
    learner = PaCo(create_model("replknet_nano", 3), [5, 3, 2], queue_size=5, dim=4)
    learner(torch.randn(2, 2, 3, 32, 32), torch.tensor([distributed.rank(), 2]))
    return learner.queue.labels.tolist()


def main() -> None:
    folder, changes = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    distributed.setup("cpu")
    results: dict = {"steps": {name: one_step(method) for name, method in METHODS.items()}, "queue": queue_labels()}
    torch.save(results, folder / f"results{distributed.rank()}.pt")
    changes |= {"data": Path(changes["data"]), "output": Path(changes["output"])}
    train(dataclasses.replace(PRESETS["digits"], **changes), Console(quiet=True))
    distributed.shutdown()


if __name__ == "__main__":
    main()
