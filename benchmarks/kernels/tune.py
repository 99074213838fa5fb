"""The dispatch's tuner on the most important layers, within a time limit; what is measured next uses its results."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import reason
from benchmarks.kernels.layers import Layer, replknet_31b
from kernels import depthwise_conv2d

OPERATIONS = 3  # a layer: forward, the filter's gradient, the 5 x 5 beside it
LEAST_SECONDS = 2.5  # for an operation: the rule's tile, PyTorch's algorithms and more tiles are compiled and timed


def layers() -> list[Layer]:
    """RepLKNet-31B's layers in bfloat16 at training's batch and at batch 1, then in float16."""
    return [*replknet_31b(64), *replknet_31b(1), *replknet_31b(64, "float16")]


def tune_layer(layer: Layer, device: str) -> None:
    """Call each of the layer's operations, which tunes it."""
    image = (layer.batch, layer.channels, layer.size, layer.size)
    input, grad = (torch.randn(image, device=device).to(layer.torch_dtype) for _ in range(2))
    weight, small = (
        torch.randn(layer.channels, 1, k, k, device=device).to(layer.torch_dtype) for k in (layer.kernel, 5)
    )
    weight.requires_grad_()
    torch.autograd.grad(depthwise_conv2d(input, weight), weight, grad)
    with torch.no_grad():
        depthwise_conv2d(input, small)


def tune(chosen: Sequence[Layer], device: str, seconds: float, tiles: Path) -> tuple[dict[str, Any], list[str]]:
    """Tune each operation for its share of `seconds`, but no layer after them.

    Returns the algorithms, which are also in `tiles`, and what failed: the other layers are tuned all the same.
    WIDEFIELD_TILES names that file afterwards. A share is checked between candidates, so a slow one overruns it.
    """
    failures = []
    deadline = time.monotonic() + seconds
    tiles.unlink(missing_ok=True)
    os.environ["WIDEFIELD_TILES"] = str(tiles)
    os.environ["WIDEFIELD_AUTOTUNE"] = "1"
    os.environ["WIDEFIELD_AUTOTUNE_SECONDS"] = str(max(LEAST_SECONDS, seconds / (OPERATIONS * len(chosen))))
    try:
        for layer in chosen:
            if time.monotonic() > deadline:
                break
            try:
                tune_layer(layer, device)
            except Exception as failure:
                failures.append(f"{layer}: {reason(failure)}")
    finally:
        for name in ("WIDEFIELD_AUTOTUNE", "WIDEFIELD_AUTOTUNE_SECONDS"):
            del os.environ[name]
    return (json.loads(tiles.read_text()) if tiles.is_file() else {}), failures
