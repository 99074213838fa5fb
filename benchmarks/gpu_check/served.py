"""The ensemble on a GPU, where there is a tritonserver: built, served, and held to the same file in one process."""

import importlib.util
import sys
import tempfile
from pathlib import Path

from benchmarks.commands import no_options
from benchmarks.gpu_check import SKIPPED

TOLERANCE = 0.02  # of a probability


def missing() -> str | None:
    """Why nothing can be served here."""
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
    """(largest difference of a probability from the file's in one process, classes compared), over gRPC."""
    import torch

    from benchmarks.photographs import photograph
    from benchmarks.served import bare_pipeline
    from client import Classifier
    from export.build import BuildOptions, build
    from export.configs import EMBEDDED
    from server import TritonServer

    repository = folder / "model_repository"
    build(BuildOptions(arch=arch, random_weights=True, image_size=224, output=repository))
    if torch.cuda.is_available():
        _place_on_the_gpu(repository / "backbone" / EMBEDDED)
    image = photograph()
    expected = bare_pipeline(repository, 1)(image).flatten()
    with (
        TritonServer(repository) as server,
        Classifier(server.grpc_url) as classifier,
    ):
        answers = classifier.classify(image, top=5)
    differences = [abs(answer.probability - float(expected[answer.index])) for answer in answers]
    return max(differences), len(differences)


def _place_on_the_gpu(config: Path) -> None:
    """The embedded server's config, which keeps the backbone on the CPU."""
    config.write_text(config.read_text().replace("KIND_CPU", "KIND_GPU"))


def main() -> int:
    reason = missing()
    if reason:
        print(reason)
        return SKIPPED
    with tempfile.TemporaryDirectory() as folder:
        difference, classes = serve(Path(folder))
    print(f"{classes} probabilities within {difference:.2g} of the same file in one process; {TOLERANCE} is allowed")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    no_options(__doc__, __spec__)
    sys.exit(main())
