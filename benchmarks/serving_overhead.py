"""What serving adds: one image at a time through the ensemble, against the same work in one process.

    python -m benchmarks.serving_overhead [--archs replknet_nano,replknet_31b] [--rounds 20]

The baseline decodes the same JPEG with the served preprocess step's own code and runs the same TorchScript file with
the same threads. All are timed in turn, in one run; the difference is the server: over gRPC and HTTP, the image in the
message and through shared memory. Also: seconds from launch to ready,
and the limit: the same request through an ensemble of three steps that compute nothing (`empty`); what each step takes
by the server's own statistics; and the bare pipeline, and the served `classifier`, of a network built with a class map
that nobody asks for.
"""

import argparse
import importlib
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.harness import interleaved, load_average_warning, run_as_served, versions, write_results

IMAGE_SIZE = 224
CROP_PCT = 0.875
JPEG_BYTES = 120_000
TOKEN = "benchmark"  # of shared memory
EMPTY_STEP = """
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        images = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
        pixels = np.zeros((len(images), SIZE, SIZE, 3), np.uint8)
        return pb_utils.InferenceResponse([pb_utils.Tensor("pixels", pixels)])
"""


def photograph() -> bytes:
    """A JPEG of about 120 kB: one of scikit-learn's photographs, enlarged."""
    from PIL import Image

    from export.parity import sample_photographs

    image = Image.open(sample_photographs()[0]).convert("RGB").resize((960, 640))
    best = b""
    for quality in range(50, 96):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if abs(len(buffer.getvalue()) - JPEG_BYTES) < abs(len(best) - JPEG_BYTES):
            best = buffer.getvalue()
    return best


def bare_pipeline(repository: Path, threads: int) -> Callable[[bytes], Any]:
    """Encoded bytes -> probabilities with no server between the steps."""
    import torch

    torch.set_num_threads(threads)
    torch.jit.enable_onednn_fusion(True)
    transform = load_transform(repository / "preprocess/1")
    settings = transform.Settings(
        image_size=IMAGE_SIZE, resize_size=int(IMAGE_SIZE / CROP_PCT), interpolation="bicubic"
    )
    (model,) = (repository / "backbone").glob("*/model.pt")
    backbone = torch.jit.load(str(model))

    def run(data: bytes) -> Any:
        with torch.inference_mode():
            found = backbone(torch.from_numpy(transform.preprocess(data, settings).copy()).unsqueeze(0))
            return (found[0] if isinstance(found, tuple) else found).softmax(1)

    return run


def load_transform(folder: Path) -> Any:
    """evaluation_transform.py of a preprocess step, with the library that the server gives it."""
    from server.libraries import find_resize

    library = find_resize()
    served = {} if library is None else {"WIDEFIELD_RESIZE": str(library)}
    # The Python backend too finds what is beside the step.
    with patch.dict(os.environ, served), patch.object(sys, "path", [*sys.path, str(folder)]):
        return importlib.import_module("evaluation_transform")


def empty_ensemble(repository: Path, target: Path) -> Path:
    """A copy of the repository whose steps take the same tensors and compute nothing."""
    import torch

    shutil.copytree(repository, target, ignore=shutil.ignore_patterns("build.json"))
    (target / "preprocess/1/model.py").write_text(EMPTY_STEP.replace("SIZE", str(IMAGE_SIZE)))
    (model,) = (target / "backbone").glob("*/model.pt")

    class Nothing(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.zeros(pixels.shape[0], 1000)

    torch.jit.script(Nothing().eval()).save(str(model))
    return target


def measure(arch: str, jpeg: bytes, rounds: int, threads: int) -> dict[str, Any]:
    from client import Classifier, step_times
    from export.build import BuildOptions, build
    from server import TritonServer

    with tempfile.TemporaryDirectory() as folder:
        repository, mapped = Path(folder) / "model_repository", Path(folder) / "with_class_map"
        options = BuildOptions(arch=arch, random_weights=True, image_size=IMAGE_SIZE, threads=threads)
        build(replace(options, output=repository))
        build(replace(options, output=mapped, class_map=True))
        bare, with_map = bare_pipeline(repository, threads), bare_pipeline(mapped, threads)
        started = time.perf_counter()
        with TritonServer(repository, shared_memory_token=TOKEN) as server:
            ready = time.perf_counter() - started
            with (
                TritonServer(empty_ensemble(repository, Path(folder) / "empty")) as limit,
                TritonServer(mapped) as explaining,
                Classifier(server.grpc_url) as grpc,
                Classifier(server.http_url, protocol="http") as http,
                Classifier(server.grpc_url, shared_memory_token=TOKEN) as shared_grpc,
                Classifier(server.http_url, protocol="http", shared_memory_token=TOKEN) as shared_http,
                Classifier(limit.grpc_url) as empty,
                Classifier(explaining.grpc_url) as plain,
            ):
                before = grpc.status()
                timings = interleaved(
                    {
                        "bare": lambda: bare(jpeg),
                        "class map": lambda: with_map(jpeg),
                        "gRPC": lambda: grpc.classify(jpeg, top=5),
                        "HTTP": lambda: http.classify(jpeg, top=5),
                        "gRPC, shared memory": lambda: shared_grpc.classify(jpeg, top=5),
                        "HTTP, shared memory": lambda: shared_http.classify(jpeg, top=5),
                        "empty": lambda: empty.classify(jpeg, top=5),
                        "class map, gRPC": lambda: plain.classify(jpeg, top=5),
                    },
                    rounds,
                    burst=11,
                )
                steps = step_times(before, grpc.status())
    ways = ("gRPC", "HTTP", "gRPC, shared memory", "HTTP, shared memory")
    added = {name: round(timings[name].median - timings["bare"].median, 3) for name in ways}
    ratio = round(timings["gRPC"].median / timings["bare"].median, 4)
    bare_ms = timings["bare"].median
    limit_ms = timings["empty"].median
    print(f"{arch}: bare {bare_ms:.2f} ms;", ", ".join(f"{name} {ms:+.2f} ms" for name, ms in added.items()))
    print(f"{arch}: an empty ensemble {limit_ms:.2f} ms over gRPC; ready in {ready:.1f} s", flush=True)
    return {
        "arch": arch,
        "timings": timings,
        "added_ms": added,
        "grpc_ratio": ratio,
        "class_map_ratio": round(timings["class map"].median / bare_ms, 4),
        "served_class_map_ratio": round(timings["class map, gRPC"].median / timings["gRPC"].median, 4),
        "steps_ms": steps_ms(steps),
        "seconds_to_ready": round(ready, 2),
    }


def steps_ms(steps: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Model -> phase -> mean milliseconds, of `client.step_times`."""
    return {model: {name: round(one.mean_ms, 3) for name, one in times.items()} for model, times in steps.items()}


def write_served(name: str, jpeg: bytes, warning: str | None, **content: Any) -> None:
    """The results of a benchmark that serves `jpeg`, with the versions that matter there; says where they are."""
    path = write_results(
        name,
        image=f"JPEG 960x640, {len(jpeg)} bytes",
        image_size=IMAGE_SIZE,
        versions=versions("torch", "nvidia-pytriton", "tritonclient", "numpy", "pillow"),
        warning=warning,
        **content,
    )
    print(f"wrote {path}" + (f"; {warning}" if warning else ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", default="replknet_nano,replknet_31b")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    run_as_served("benchmarks.serving_overhead")
    warning = load_average_warning()
    threads = len(os.sched_getaffinity(0))
    jpeg = photograph()
    rows = [measure(arch, jpeg, options.rounds, threads) for arch in options.archs.split(",")]
    write_served("serving_overhead", jpeg, warning, threads=threads, rows=rows)


if __name__ == "__main__":
    main()
