"""The ensemble on a GPU, if there is a tritonserver: built, served, and compared with the same file in one process."""

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.commands import no_options
from benchmarks.gpu_check import SKIPPED

TOLERANCE = 0.03  # of the norm of the logits: rounding to TF32 makes 0.004, another of the images 0.27 or more


def missing() -> str | None:
    """The reason why nothing can be served on this machine, or None."""
    for module in ("psutil", "tritonclient", "PIL"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed on this machine"
    from server.errors import InstallationError
    from server.locate import find_tritonserver

    try:
        find_tritonserver()
    except InstallationError as reason:
        return str(reason)
    return None


def serve(folder: Path, arch: str = "replknet_nano") -> tuple[float, int]:
    """Serve over gRPC; returns (largest `distance` of an image from the same file in one process, images)."""
    import numpy as np
    import torch
    import tritonclient.grpc as triton_grpc

    from benchmarks.photographs import turned
    from benchmarks.served import bare_pipeline, random_checkpoint
    from export.build import BuildOptions, build
    from export.configs import EMBEDDED
    from server import TritonServer

    repository = folder / "model_repository"
    build(BuildOptions(weights=random_checkpoint(arch, folder / "checkpoint"), output=repository))
    if torch.cuda.is_available():
        _place_on_the_gpu(repository / "backbone" / EMBEDDED)
    run = bare_pipeline(repository, 1)
    distances = []
    with TritonServer(repository) as server, triton_grpc.InferenceServerClient(server.grpc_url) as client:
        for image in turned():
            tensor = triton_grpc.InferInput("image", [1, 1], "BYTES")
            tensor.set_data_from_numpy(np.array([[image]], object))
            answer = client.infer("classifier", [tensor]).as_numpy("probabilities")
            distances.append(distance(torch.from_numpy(answer.copy()), run(image)))
    return float(torch.tensor(distances).max()), len(distances)  # max() would lose one that is not a number


def distance(found: Any, expected: Any) -> float:
    """The distance of probabilities [1,classes] as centred logits (their logs less the mean), relative in norm."""
    logits, right = (each.log() - each.log().mean() for each in (found, expected))
    return float((logits - right).norm() / right.norm())


def _place_on_the_gpu(config: Path) -> None:
    """Change the embedded server's config, which keeps the backbone on the CPU."""
    config.write_text(config.read_text().replace("KIND_CPU", "KIND_GPU"))


def main() -> int:
    reason = missing()
    if reason:
        print(reason)
        return SKIPPED
    with tempfile.TemporaryDirectory() as folder:
        largest, images = serve(Path(folder))
    print(f"the logits of {images} images within {largest:.2g} of those in one process; {TOLERANCE} is allowed")
    return 0 if largest <= TOLERANCE else 1


if __name__ == "__main__":
    no_options(__doc__, __spec__)
    sys.exit(main())
