"""Ray Serve: https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html gives `serve.batch`, and asks for
`max_ongoing_requests` that can fill a batch; `num_cpus` as in .../serve/resource-allocation.html."""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
from peer import MAX_BATCH, Classifier, Options, decode, options
from ray import serve
from starlette.requests import Request


class Images:
    def __init__(self, options: Options) -> None:
        self.thread = ThreadPoolExecutor(1)  # one, whose OpenMP threads are the only ones
        self.classifier = self.thread.submit(Classifier, options).result()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.005)
    async def classify(self, images: list[np.ndarray]) -> list[list[dict[str, Any]]]:
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.classifier.classify, images)

    async def __call__(self, request: Request) -> list[dict[str, Any]]:
        # Work beside the event loop: .../serve/advanced-guides/asyncio-best-practices.html
        pixels = await asyncio.to_thread(decode, await request.body())
        return await self.classify(pixels)


if __name__ == "__main__":
    chosen = options()
    ray.init(num_cpus=chosen.threads * chosen.workers, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": chosen.port})
    deployment = serve.deployment(
        max_ongoing_requests=256, num_replicas=chosen.workers, ray_actor_options={"num_cpus": chosen.threads}
    )
    application = deployment(Images).bind(chosen)
    serve.run(application, route_prefix="/classify")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        signal.pause()
    except KeyboardInterrupt:
        ray.shutdown()  # the cluster is this process's own; serve.shutdown() would drain it for 20 s
