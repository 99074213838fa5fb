"""Random numbers as a function of the seed and a place in the run, so that a resumed run draws the same ones.

Nothing is kept between steps or images: optimiser step t of process r draws from (seed, t, r), as does the evaluation
after it, and the n-th image of the run from (seed, n), whichever worker decodes it.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

STEP, IMAGE, ORDER, EVALUATION = range(4)  # streams of one seed that never meet


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
    """Python, NumPy and PyTorch on the CPU draw from `words` inside, and go on as before after."""
    python, numpy, seed = random.getstate(), np.random.get_state(), derived_seed(*words)
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
