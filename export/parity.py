"""Check that an exported graph answers as the eager model does on real photographs; if not, the build is refused."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.files import files_below

# The largest |logit difference| allowed, relative to the largest |logit|; half precisions keep 11 and 8 bits.
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp"}

Outputs: TypeAlias = Tensor | Sequence[Tensor]  # logits, or logits and class_map


class ParityError(RuntimeError):
    """An exported graph and the eager model disagree."""


@dataclass(frozen=True)
class Parity:
    """The result of one comparison with the eager model."""

    name: str
    images: int
    largest_difference: float
    tolerance: float


def sample_photographs() -> list[Path]:
    """The photographs that scikit-learn ships, found without importing it. Raises `FileNotFoundError`."""
    spec = importlib.util.find_spec("sklearn")
    folder = Path(spec.origin).parent / "datasets" / "images" if spec is not None and spec.origin is not None else None
    if folder is None or not (found := sorted(folder.glob("*.jpg"))):
        raise FileNotFoundError(
            "no images to check parity on: name a folder with --parity-images, or pip install scikit-learn"
        )
    return found


def real_pixels(folder: Path | None, image_size: int, count: int = 8) -> Tensor:
    """Crops of real images, [count,S,S,3] uint8: from `folder`, or from scikit-learn's photographs.

    Raises `FileNotFoundError` if there is none, `ValueError` for one that cannot be decoded.
    """
    if folder is None:
        paths = sample_photographs()
    else:
        if not folder.is_dir():
            raise FileNotFoundError(f"--parity-images {folder} is not a folder: name a folder of images")
        paths = sorted(path for path in map(Path, files_below(folder)) if path.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise FileNotFoundError(f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    paths = [paths[i * len(paths) // count] for i in range(count)] if len(paths) >= count else paths
    crops = []
    generator = np.random.default_rng(0)
    for index in range(count):
        path = paths[index % len(paths)]
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # decoders raise nearly everything on damaged bytes
            raise ValueError(f"{path} cannot be decoded ({error}): replace or remove it") from error
        side = int(min(image.size) * generator.uniform(0.6, 1.0)) or 1
        left = int(generator.integers(0, image.width - side + 1))
        top = int(generator.integers(0, image.height - side + 1))
        crop = image.resize(
            (image_size, image_size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
        )
        crops.append(np.asarray(crop))
    return torch.from_numpy(np.stack(crops))


@torch.inference_mode()
def check_parity(
    name: str,
    reference: Callable[[Tensor], Outputs],
    candidate: Callable[[Tensor], Outputs],
    pixels: Tensor,
    precision: str,
) -> Parity:
    """Compare logits, and class maps where there are any, at batch 1 and at the whole batch.

    A map belongs to the best class: if rounding makes another class the best, the maps are of different classes and
    are not compared. Raises a `ParityError` that names the difference if it exceeds the tolerance of `precision`, or is
    not a number.
    """
    largest = 0.0
    for batch in (pixels[:1], pixels):
        expected, found = _outputs(reference(batch)), _outputs(candidate(batch))
        same = expected["logits"].argmax(1) == found["logits"].argmax(1)
        for output, values in expected.items():
            rows = same if output == "class_map" else torch.ones_like(same)
            if not rows.any():
                continue
            difference = (found[output] - values)[rows].abs().max() / values.abs().max().clamp_min(1e-6)
            if not difference <= TOLERANCE[precision]:  # also true of NaN
                raise ParityError(
                    f"{name} differs from the eager model by {difference:.3g} of the largest value of {output} at "
                    f"batch {len(batch)} (allowed in {precision}: {TOLERANCE[precision]:g}); "
                    "the repository was left as it was"
                )
            largest = max(largest, float(difference))
    return Parity(name, len(pixels), largest, TOLERANCE[precision])


def _outputs(values: Outputs) -> dict[str, Tensor]:
    named = (values,) if isinstance(values, Tensor) else values
    return {name: value.double() for name, value in zip(("logits", "class_map"), named, strict=False)}
