"""Shared by all peers: JPEG -> pixels -> network -> labels, in Pillow and PyTorch or OpenVINO. Runs in build/peers."""

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

SIZE, RESIZE, TOP = 224, 256, 5
MAX_BATCH = 8


@dataclass(frozen=True)
class Options:
    model: str
    library: str
    port: int
    threads: int
    workers: int


def options() -> Options:
    parser = argparse.ArgumentParser()
    for name in ("model", "library"):
        parser.add_argument(f"--{name}")
    for name in ("port", "threads", "workers"):
        parser.add_argument(f"--{name}", type=int)
    return Options(**vars(parser.parse_args()))


def preprocess(image: Image.Image) -> np.ndarray:
    """Return [S,S,3] uint8, as Widefield's preprocess step does for a photograph."""
    return resize_and_crop(ImageOps.exif_transpose(image).convert("RGB"))


def resize_and_crop(image: Image.Image) -> np.ndarray:
    width, height = image.size
    short = min(width, height)
    size = (RESIZE * width // short, RESIZE * height // short)
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - SIZE) / 2), round((size[1] - SIZE) / 2)
    return np.asarray(image.crop((left, top, left + SIZE, top + SIZE)))


def decode(data: bytes) -> np.ndarray:
    return preprocess(Image.open(io.BytesIO(data)))


def torchscript(options: Options) -> Callable[[np.ndarray], torch.Tensor]:
    """The TorchScript that tritonserver runs, with the same fusion."""
    torch.jit.enable_onednn_fusion(True)
    torch.ops.load_library(options.library)
    backbone = torch.jit.load(options.model)
    return lambda pixels: backbone(torch.from_numpy(pixels))


def openvino(options: Options) -> Callable[[np.ndarray], torch.Tensor]:
    """The ONNX file in float32, compiled for each batch size: no shape is dynamic."""
    from openvino import Core

    core = Core()
    settings = {"INFERENCE_NUM_THREADS": options.threads, "PERFORMANCE_HINT": "LATENCY"}
    settings |= {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = {}
    for batch in range(1, MAX_BATCH + 1):
        network = core.read_model(options.model)
        network.reshape([batch, SIZE, SIZE, 3])
        compiled[batch] = core.compile_model(network, "CPU", settings)

    def run(pixels: np.ndarray) -> torch.Tensor:
        request = compiled[len(pixels)].create_infer_request()  # one for each thread of the server
        return torch.from_numpy(request.infer([pixels])[0])

    return run


class Classifier:
    """The network, warmed up at every possible batch size."""

    def __init__(self, options: Options) -> None:
        torch.set_num_threads(options.threads)
        self.logits = (openvino if options.model.endswith(".onnx") else torchscript)(options)
        for batch in range(MAX_BATCH, 0, -1):
            for _ in range(3):
                self.classify([np.zeros((SIZE, SIZE, 3), np.uint8)] * batch)

    @torch.inference_mode()
    def classify(self, pixels: Sequence[np.ndarray]) -> list[list[dict[str, Any]]]:
        """The best five of each image."""
        probabilities = self.logits(np.stack(pixels)).softmax(1)
        values, indices = probabilities.topk(TOP)
        return [
            [{"label": str(i), "index": i, "probability": p} for i, p in zip(row, best, strict=True)]
            for row, best in zip(indices.tolist(), values.tolist(), strict=True)
        ]
