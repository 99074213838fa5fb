"""A model repository with the demo's digits network, and pictures with the answers that it must give."""

import io
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

import demo
from client import Classifier
from export.build import BuildOptions, build
from server.repository import EMBEDDED

LARGE_EVERY, LARGE_SIDE = 20, 1760  # pictures, pixels
TOLERANCE = 1e-3  # of a probability: oneDNN computes a batch of 4 in another order than one image

LARGE_TOLERANCE = 0.3  # enlarged and reduced again, the digit is the same but its pixels are not


@dataclass(frozen=True)
class Picture:
    data: bytes
    label: str
    probability: float
    tolerance: float = TOLERANCE

    def is_answered_by(self, label: str, probability: float) -> bool:
        return label == self.label and abs(probability - self.probability) < self.tolerance

    def enlarged(self) -> "Picture":
        """The picture as a BMP of 9 MB with repeated pixels, which the preprocess step reduces to nearly the same."""
        buffer = io.BytesIO()
        image = Image.open(io.BytesIO(self.data)).convert("RGB")
        image.resize((LARGE_SIDE, LARGE_SIDE), Image.Resampling.BICUBIC).save(buffer, "BMP")
        return replace(self, data=buffer.getvalue(), tolerance=LARGE_TOLERANCE)


def build_digits(folder: Path) -> Path:
    """Build the repository and return its folder. One thread for each server, because they share the cores."""
    demo.train()
    repository = folder / "model_repository"
    build(BuildOptions(weights=demo.CHECKPOINT, output=repository, threads=1, parity_images=demo.HELD_OUT))
    return repository


def with_processes(repository: Path, copy: Path) -> Path:
    """Copy the repository so that its Python step runs in separate processes, as in NVIDIA's container."""
    shutil.copytree(repository, copy)
    (copy / "preprocess" / EMBEDDED).unlink()
    return copy


def pictures(url: str) -> list[Picture]:
    """Return the held-out digits, with the answers of an undisturbed server over gRPC."""
    found = []
    with Classifier(url) as classifier:
        for path, _ in demo.held_out_images():
            data = path.read_bytes()
            (best,) = classifier.classify(data, top=1)
            found.append(Picture(data, best.label, best.probability))
    return found


def with_large(small: list[Picture]) -> list[Picture]:
    """Make each twentieth picture a file of 9 MB: too large for a balancer to retry, and it needs new shared memory."""
    return [picture if number % LARGE_EVERY else picture.enlarged() for number, picture in enumerate(small)]
