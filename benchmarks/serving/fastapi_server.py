"""FastAPI and TorchScript: https://fastapi.tiangolo.com/async/ advises a plain `def` where the work blocks, and
https://fastapi.tiangolo.com/deployment/server-workers/ worker processes to use every core. It does not batch."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, UploadFile
from peer import Classifier, decode, options

classifier: Classifier


@asynccontextmanager
async def loaded(app: FastAPI) -> AsyncIterator[None]:
    global classifier
    classifier = Classifier(options())
    yield


app = FastAPI(lifespan=loaded)


@app.post("/classify")
def classify(image: UploadFile) -> list[dict[str, Any]]:
    return classifier.classify([decode(image.file.read())])[0]


if __name__ == "__main__":
    chosen = options()
    # A worker that says nothing for 5 s is replaced, over and over where loading and warming take longer.
    settings = {"log_level": "warning", "timeout_worker_healthcheck": 60}
    uvicorn.run("fastapi_server:app", host="127.0.0.1", port=chosen.port, workers=chosen.workers, **settings)
