"""BentoML: https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html gives `batchable`, `max_batch_size`
and `max_latency_ms`; it decodes the pictures itself (https://docs.bentoml.com/en/latest/build-with-bentoml/iotypes.html)."""

import os
from typing import Any

import bentoml
from peer import MAX_BATCH, Classifier, Options, options, preprocess
from PIL.Image import Image

VARIABLES = {"model": "PEER_MODEL", "library": "PEER_LIBRARY", "threads": "PEER_THREADS", "workers": "PEER_WORKERS"}


@bentoml.service(workers=int(os.environ.get("PEER_WORKERS", "1")), traffic={"timeout": 60})
class Images:
    def __init__(self) -> None:
        values: dict[str, Any] = {name: os.environ[variable] for name, variable in VARIABLES.items()}
        self.classifier = Classifier(
            Options(values["model"], values["library"], 0, int(values["threads"]), int(values["workers"]))
        )

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=30_000)
    def classify(self, images: list[Image]) -> list[list[dict[str, Any]]]:
        return self.classifier.classify([preprocess(image) for image in images])


if __name__ == "__main__":
    import subprocess
    import sys

    chosen = options()
    os.environ.update({variable: str(getattr(chosen, name)) for name, variable in VARIABLES.items()})
    command = [sys.executable, "-m", "bentoml", "serve", "bentoml_server:Images"]
    folder = os.path.dirname(os.path.abspath(__file__))
    sys.exit(subprocess.call([*command, "--host", "127.0.0.1", "--port", str(chosen.port)], cwd=folder))
