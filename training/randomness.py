"""Random numbers as a function of the seed and a place in the run, so that a resumed run draws the same ones.

Nothing is kept between steps or images: optimiser step t of process r draws from (seed, t, r), as does the evaluation
after it, and the n-th image of the run from (seed, n), whichever worker decodes it.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import get_worker_info

STEP, IMAGE, ORDER, EVALUATION = range(4)  # independent streams of one seed


def derived_seed(*words: int) -> int:
    """63 bits that depend on every word (NumPy's SeedSequence)."""
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]) >> 1


def seed_everything(*words: int) -> None:
    """Seed Python, NumPy and PyTorch on every device."""
    seed = derived_seed(*words)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def seeded(*words: int) -> Iterator[None]:
    """Seed Python, NumPy and PyTorch on the CPU with `words` inside the block, and restore their states after it.

    In a loader's worker, which draws nothing else, no state is restored: NumPy's alone takes longer than to seed all.
    """
    seed = derived_seed(*words)
    if get_worker_info() is not None:
        _seed_cpu(seed)
        yield
        return
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        _seed_cpu(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _seed_cpu(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
