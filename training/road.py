"""ROAD, "Remove And Debias" (Rong et al., ICML 2022): a score of maps on images that stay close to the data.

Pixels that a map calls important are removed by noisy linear imputation: each becomes the weighted mean of its eight
neighbours, by one linear system for all removed pixels, plus a little noise. Unlike a constant, the imputed pixels do
not show the network by their shape which pixels were removed.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import splu
from torch import Tensor, nn

from training.cam_scores import brightness_rank

PERCENTILES = (20, 40, 60, 80)
NEIGHBOURS = {(i, j): 1 / 6 if i == 0 or j == 0 else 1 / 12 for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)}


def impute(image: Tensor, removed: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Return image [3,H,W] with the pixels of `removed` [H,W], bool, imputed.

    A removed pixel x_i solves sum_j w_ij (x_i - x_j) = 0 over its neighbours j inside the image: w is 1/6 for direct
    neighbours, 1/12 for diagonal ones. `noise` is the standard deviation of what is added, in the image's (normalised)
    units.
    """
    gone = removed.cpu().numpy()
    (height, width), count = gone.shape, int(gone.sum())
    if not count:
        return image.clone()
    unknown = np.full(gone.shape, -1)
    unknown[gone] = np.arange(count)  # [H,W] the number of each removed pixel
    pixels = image.detach().cpu().double().numpy()  # [3,H,W]
    rows, columns = np.nonzero(gone)
    diagonal, known = np.zeros(count), np.zeros((count, len(pixels)))
    parts = []  # of the matrix: row, column, value
    for (down, right), weight in NEIGHBOURS.items():
        y, x = rows + down, columns + right
        inside = np.flatnonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))
        y, x = y[inside], x[inside]
        diagonal[inside] += weight
        other = unknown[y, x]
        known[inside] += np.where(other < 0, weight * pixels[:, y, x], 0).T
        parts.append((inside[other >= 0], other[other >= 0], np.full((other >= 0).sum(), -weight)))
    parts.append((np.arange(count), np.arange(count), diagonal))
    row, column, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    matrix = coo_matrix((value, (row, column)), shape=(count, count)).tocsc()
    filled = torch.from_numpy(splu(matrix).solve(known).T)  # [3,removed]
    filled += noise * torch.randn(filled.shape, generator=generator, dtype=torch.float64)
    result = image.clone()
    result[:, removed] = filled.to(image)
    return result


@torch.no_grad()
def road(
    model: nn.Module,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    percentiles: Sequence[int] = PERCENTILES,
    noise: float = 0.01,
) -> Tensor:
    """Return the combined score [B]: higher is better, about 0 for a random map.

    It is the mean over p in `percentiles` of half the target's probability without the p % least relevant pixels, minus
    half that without the p % most relevant ones. images [B,3,H,W] normalised, maps [B,H,W]. At least one pixel always
    stays.
    """
    rank = brightness_rank(maps)  # [B,H,W]
    pixels = rank[0].numel()
    generator = torch.Generator().manual_seed(0)
    total = images.new_zeros(len(images))
    for percentile in percentiles:
        count = min(round(percentile / 100 * pixels), pixels - 1)
        for sign, removed in ((-1, rank < count), (1, rank >= pixels - count)):
            filled = [impute(*pair, noise, generator) for pair in zip(images, removed, strict=True)]
            probabilities = model(torch.stack(filled)).softmax(1)
            total += sign * probabilities.gather(1, targets[:, None])[:, 0]
    return total / (2 * len(percentiles))
