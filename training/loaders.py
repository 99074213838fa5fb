"""Batches of a data set: each process's share, from any place in a run, decoded by workers that end with it."""

import gc
import os
import signal
import sys
import threading
from types import TracebackType
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from training import distributed
from training.randomness import IMAGE, seeded
from training.samplers import EpochBatches, Weights
from training.settings import LoopConfig


class Numbered(Dataset[Any]):
    """`dataset` by (index, number of the image in the run): the number seeds what is random about the image."""

    def __init__(self, dataset: Dataset[Any], seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, item: tuple[int, int]) -> Any:
        index, number = item
        with seeded(self.seed, IMAGE, number):
            return self.dataset[index]


def make_loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    train: bool,
    workers: int,
    seed: int = 0,
    pin_memory: bool = False,
    weights: Weights | None = None,
) -> DataLoader[Any]:
    """This process's batches (images [B,3,S,S], targets [B]).

    In training as `EpochBatches` says, and `loader.batch_sampler.set_position` is where to start. In evaluation every
    image once, in order, each process a part of them.
    """
    size = len(cast(Any, dataset))
    rank, world = distributed.rank(), distributed.world_size()
    mine = range(rank, size, world)
    if not train and len(mine) <= batch_size:  # one batch is one process's work: this one's
        workers = 0
    common: dict[str, Any] = {
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "pin_memory": pin_memory,
        "worker_init_fn": _begin_worker,
        "generator": torch.Generator().manual_seed(seed),  # or each iterator would draw from the run's own
    }
    if not train:
        return DataLoader(dataset, batch_size, sampler=mine, **common)
    windows = getattr(dataset, "sizes", None)  # of shards
    batches = EpochBatches(size, batch_size, seed=seed, rank=rank, world=world, weights=weights, windows=windows)
    return DataLoader(Numbered(dataset, seed), batch_sampler=batches, **common)


def make_loaders(
    train_set: Dataset[Any], val_set: Dataset[Any], config: LoopConfig, weights: Weights | None = None
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Of the training and of the held-out images, as `config` has it."""
    loading: dict[str, Any] = {"workers": config.workers, "seed": config.seed}
    loading["pin_memory"] = config.device.startswith("cuda")
    return (
        make_loader(train_set, config.batch_size, train=True, weights=weights, **loading),
        make_loader(val_set, config.batch_size, train=False, **loading),
    )


def _begin_worker(_: int) -> None:
    """SIGTERM to all processes is the main one's to answer, which needs its workers to end the step.

    The main one's own SIGTERM still ends a worker: ignored, a main process that ends by an error would wait for ever.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_parents_sigterm, args=(os.getppid(),), daemon=True).start()
    sys.excepthook = _hide_connection_errors
    gc.freeze()  # a collection writes to all objects that there are, here 130 MB that are the main process's too


def _hide_connection_errors(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Batches that an ended main process never fetched are a worker's ConnectionError: no news after Ctrl-C."""
    if not isinstance(error, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _exit_on_parents_sigterm(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
