"""Loaders of a data set: each process's batches, from any step on, decoded by workers that end with the run."""

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
    """`dataset` indexed by (index, number of the image in the run): the number seeds the image's random transform."""

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
    """Return a loader of this process's batches (images [B,3,S,S], targets [B]).

    In training the batches are those of `EpochBatches`, and `loader.batch_sampler.set_position` sets where they start.
    In evaluation every image comes once, in order, divided among the processes.
    """
    size = len(cast(Any, dataset))
    rank, world = distributed.rank(), distributed.world_size()
    mine = range(rank, size, world)
    if not train and len(mine) <= batch_size:  # a single batch is decoded in this process
        workers = 0
    common: dict[str, Any] = {
        **forked(workers),
        "persistent_workers": workers > 0,
        "pin_memory": pin_memory,
        "worker_init_fn": _begin_worker,
        "generator": torch.Generator().manual_seed(seed),  # else each iterator would draw from the run's own
    }
    if not train:
        return DataLoader(dataset, batch_size, sampler=mine, **common)
    windows = getattr(dataset, "sizes", None)  # of shards
    batches = EpochBatches(size, batch_size, seed=seed, rank=rank, world=world, weights=weights, windows=windows)
    return DataLoader(Numbered(dataset, seed), batch_sampler=batches, **common)


def forked(workers: int) -> dict[str, Any]:
    """Return a DataLoader's options for workers that share this process's memory; Python 3.14's default do not."""
    return {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}


def make_loaders(
    train_set: Dataset[Any], val_set: Dataset[Any], config: LoopConfig, weights: Weights | None = None
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return the loaders of the training and of the held-out images, with the settings of `config`."""
    loading: dict[str, Any] = {"workers": config.workers, "seed": config.seed}
    loading["pin_memory"] = config.device.startswith("cuda")
    return (
        make_loader(train_set, config.batch_size, train=True, weights=weights, **loading),
        make_loader(val_set, config.batch_size, train=False, **loading),
    )


def _begin_worker(_: int) -> None:
    """Prepare a worker process. Only the main process handles a SIGTERM to all processes: it needs its workers until
    the step's end.

    A SIGTERM that the main process sends still ends a worker: else a main process that ends by an error would wait for
    ever.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_exit_on_parents_sigterm, args=(os.getppid(),), daemon=True).start()
    sys.excepthook = _hide_connection_errors
    gc.freeze()  # a collection writes to all objects, and would copy 130 MB that are shared with the main process


def _hide_connection_errors(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print errors other than a ConnectionError, which workers get after Ctrl-C for batches never fetched."""
    if not isinstance(error, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def _exit_on_parents_sigterm(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
