"""The order of the images: batches that depend only on the seed and the epoch, from any batch of the epoch on."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.utils.data import Sampler

from training.randomness import ORDER, derived_seed
from training.settings import SettingsError

Sampling = Literal["instance", "class_balanced", "square_root", "progressive"]
Weights = Callable[[int], Tensor | None]  # epoch -> weight of every image, None for each image once


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches: lists of (index of the image, number of the image in the run), for one of `world` processes.

    All processes draw the same order and take `batch_size` images of it in turn, so n processes train on the images
    that one would with n times the batch size. An incomplete last batch is left out; a set smaller than one batch is
    one batch. With `weights` the images of an epoch, of the same length, are drawn with replacement. With `windows`
    (sizes of groups of images that are stored together, such as shards) groups come in random order and images are
    shuffled within `buffer` at a time. Raises `SettingsError` for a set too small for all processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        weights: Weights | None = None,
        windows: Sequence[int] | None = None,
        buffer: int = 8192,
    ) -> None:
        if size < batch_size * world and (world > 1 or size < 1):
            raise SettingsError(
                f"{size} images are too few for {world} processes x --batch-size {batch_size}: lower it"
            )
        self.size, self.seed, self.rank, self.world = size, seed, rank, world
        self.batch_size = min(batch_size, size)
        self.weights, self.windows, self.buffer = weights, windows, buffer
        self.epoch, self.first = 0, 0

    def set_position(self, epoch: int, first: int = 0) -> None:
        """Let the next iteration be that of `epoch`, from its batch `first` on."""
        self.epoch, self.first = epoch, first

    def __len__(self) -> int:
        """Batches of a whole epoch, in each process."""
        return self.size // (self.batch_size * self.world)

    def order(self, epoch: int) -> Tensor:
        """Return the indices of an epoch's images, in order [size]."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, ORDER, epoch))
        weights = self.weights(epoch) if self.weights else None
        if weights is not None:
            return torch.multinomial(weights, self.size, replacement=True, generator=generator)
        if self.windows is None:
            return torch.randperm(self.size, generator=generator)
        runs = torch.arange(self.size).split(list(self.windows))
        mixed = torch.cat([runs[i] for i in torch.randperm(len(runs), generator=generator).tolist()])
        blocks = mixed.split(self.buffer)
        return torch.cat([block[torch.randperm(len(block), generator=generator)] for block in blocks])

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = self.epoch, self.order(self.epoch).tolist()
        for batch in range(self.first, len(self)):
            start = (batch * self.world + self.rank) * self.batch_size
            places = range(start, start + self.batch_size)
            yield [(order[place], epoch * self.size + place) for place in places]


def evenly(size: int, count: int) -> list[int]:
    """Return `count` indices spread evenly over `size`, or all: always the same, of all classes if sorted by class."""
    chosen = min(count, size)
    return [index * size // chosen for index in range(chosen)]


def class_sampling(name: Sampling, targets: Sequence[int], epochs: int) -> Weights | None:
    """Return the weights of a sampler of Kang et al. (ICLR 2020): a class of n images is drawn with probability ~ n^q.

    "instance": q = 1, every image once. "class_balanced": q = 0. "square_root": q = 1/2. "progressive": from instance
    to class-balanced, linearly over the epochs. Raises `SettingsError` for another name.
    """
    if name not in get_args(Sampling):
        raise SettingsError(f"--sampler {name}: choose one of {', '.join(get_args(Sampling))}")
    if name == "instance":
        return None
    labels = torch.as_tensor(targets)
    counts = torch.bincount(labels).double()  # [classes]
    present = counts > 0

    def of_classes(power: float) -> Tensor:
        share = torch.where(present, counts**power, 0)
        return share / share.sum()

    def weights(epoch: int) -> Tensor:
        if name == "progressive":
            t = epoch / max(1, epochs - 1)
            share = (1 - t) * of_classes(1.0) + t * of_classes(0.0)
        else:
            share = of_classes(0.0 if name == "class_balanced" else 0.5)
        return (share / counts.clamp_min(1))[labels]

    return weights
