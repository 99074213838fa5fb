"""LitServe: https://lightning.ai/docs/litserve/features/batching gives `max_batch_size` and `batch_timeout`; images
come as base64 in JSON, as in https://lightning.ai/docs/litserve/features/request-response-format."""

import base64
from typing import Any

import litserve as ls
import numpy as np
from peer import MAX_BATCH, Classifier, decode, options


class Images(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.classifier = Classifier(options())

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        return decode(base64.b64decode(request["image"]))

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return inputs

    def predict(self, pixels: list[np.ndarray]) -> list[list[dict[str, Any]]]:
        return self.classifier.classify(pixels)

    def unbatch(self, output: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        return output

    def encode_response(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output


if __name__ == "__main__":
    chosen = options()
    api = Images(max_batch_size=MAX_BATCH, batch_timeout=0.005)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=chosen.workers, timeout=60)
    # As many HTTP servers as workers, LitServe's default and its advice.
    server.run(host="127.0.0.1", port=chosen.port, log_level="warning", generate_client_file=False)
