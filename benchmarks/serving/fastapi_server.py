"""FastAPI and TorchScript: https://fastapi.tiangolo.com/async/ advises a plain `def` where the work blocks, and
https://fastapi.tiangolo.com/deployment/server-workers/ worker processes to use every core. It does not batch."""

from typing import Any

import uvicorn
from fastapi import FastAPI, UploadFile
from peer import Classifier, decode, options

app = FastAPI()
classifier: Classifier


@app.on_event("startup")
def load() -> None:
    global classifier
    classifier = Classifier(options())


@app.post("/classify")
def classify(image: UploadFile) -> list[dict[str, Any]]:
    return classifier.classify([decode(image.file.read())])[0]


if __name__ == "__main__":
    chosen = options()
    uvicorn.run("fastapi_server:app", host="127.0.0.1", port=chosen.port, workers=chosen.workers, log_level="warning")
