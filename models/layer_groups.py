"""Which parameters of a RepLKNet share a learning rate under layer decay, as in the authors' code."""

import re
from collections.abc import Sequence

PAIRS_A_GROUP = 2  # two RepLKBlocks and two ConvFFNs


def layer_group(name: str, layers: Sequence[int]) -> int:
    """The group of a parameter: 0 the stem, the largest the norm and the head.

    A transition goes with the blocks before it. For 2,2,18,2 layers these are the 14 groups of the authors' code.
    """
    groups = [-(-depth // PAIRS_A_GROUP) for depth in layers]
    if name.startswith("stem."):
        return 0
    if found := re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name):
        stage, block = int(found[1]), int(found[2])
        return 1 + sum(groups[:stage]) + block // (2 * PAIRS_A_GROUP)
    if found := re.match(r"transitions\.(\d+)\.", name):
        return sum(groups[: int(found[1]) + 1])
    return 1 + sum(groups)
