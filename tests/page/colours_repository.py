"""A repository written as build_models.py does, in two seconds: it finds a picture's colour, and maps where that is."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from export.configs import ServingSpec
from export.repository import write_repository
from export.torchscript import save_torchscript

COLOURS = {
    "red": (0.8, 0.1, 0.1),
    "orange": (0.95, 0.5, 0.1),
    "yellow": (0.95, 0.9, 0.2),
    "green": (0.2, 0.65, 0.2),
    "blue": (0.15, 0.25, 0.8),
    "purple": (0.5, 0.15, 0.6),
    "pink": (0.95, 0.55, 0.7),
    "white": (0.95, 0.95, 0.95),
}
SIDE, CELL = 224, 8  # pixels
MAP = SIDE // CELL


class Backbone(nn.Module):
    """pixels [B,224,224,3] uint8 -> logits [B,8], and the best class's map [B,28,28], whose mean its logit is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("colours", torch.tensor(list(COLOURS.values())))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        cells = pixels.float().reshape(-1, 28, 8, 28, 8, 3).mean((2, 4)) / 255  # [B,28,28,3]
        distance = (cells[:, None] - self.colours[:, None, None]).square().sum(4)  # [B,8,28,28]
        maps = 20 * torch.exp(-distance / 0.1)
        logits = maps.mean((2, 3))
        best = logits.argmax(1)
        return logits, maps[torch.arange(maps.shape[0]), best]


def write_colours_repository(root: Path, explained: bool = True) -> Path:
    """`classifier`, its three steps, and, if `explained`, `classifier_explained`."""

    def write_backbone(folder: Path) -> dict[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is what tritonserver reads
            save_torchscript(torch.jit.script(Backbone().eval()), folder / "model.pt")
        return {}

    class_map = (MAP, MAP) if explained else None
    spec = ServingSpec(SIDE, SIDE, "bicubic", len(COLOURS), threads=1, class_map=class_map)
    warmup = BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(warmup, "PNG")
    write_repository(root, spec, list(COLOURS), write_backbone, warmup.getvalue())
    return root
