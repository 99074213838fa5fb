"""tritonserver's dynamic batcher is woken for a request that came while every instance was busy."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch_models
import tritonclient.grpc as triton_grpc
from preloaded import compile_program, output_of

from server import TritonServer

POLICY = """dynamic_batching {
  preferred_batch_size: 2
  default_queue_policy { default_timeout_microseconds: 5000000 allow_timeout_override: true max_queue_size: 1024 }
}
"""
PAIRS = 40
# A timed wait as std::condition_variable makes it: for what nobody does, and for what is done beside it.
WAITS = r"""
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <thread>

int main() {
  using namespace std::chrono_literals;
  std::mutex mutex;
  std::condition_variable changed;
  for (const auto time : {300ms, 500ms, 900ms}) {
    std::unique_lock lock(mutex);
    int looks = 0;
    const auto begin = std::chrono::steady_clock::now();
    const bool met = changed.wait_for(lock, time, [&] { return ++looks < 0; });
    const bool full = std::chrono::steady_clock::now() - begin >= time;
    std::printf("%d %d %d\n", met, full, looks);
  }
  bool there = false;
  std::thread other([&] { std::this_thread::sleep_for(100ms); std::lock_guard lock(mutex); there = true; });
  std::unique_lock lock(mutex);
  std::printf("%d\n", changed.wait_for(lock, 500ms, [&] { return there; }));  // which nobody notifies of
  other.join();
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compile_program(tmp_path_factory.mktemp("waits"), WAITS)


def test_a_wait_of_half_a_second_is_cut_up_and_no_other(program):
    """It lasts as long and answers the same; in between its condition is looked at, busily for a second at most."""
    lines = output_of(program).splitlines()
    (short, half, long), met = [[int(word) for word in line.split()] for line in lines[:3]], lines[3]
    assert [short[:2], half[:2], long[:2]] == [[0, 1]] * 3
    assert [short[2], long[2]] == [2, 2]
    assert 20 < half[2] <= 600
    assert met == "1"


class Slow(torch.nn.Module):
    """Some 20 ms of work."""

    def forward(self, x):
        m = torch.ones(256, 256)
        for _ in range(60):
            m = (m @ m).clamp(max=1.0)
        return x + m[0, 0]


@pytest.mark.server
def test_a_request_that_comes_while_all_are_busy(tmp_path):
    """Of two requests the second waits for the first one's end. Unwoken, one in four waits half a second."""
    torch_models.write(tmp_path, "slow", Slow(), ["x"], ["y"], POLICY, ENABLE_ONEDNN_FUSION="false")
    with (
        TritonServer(tmp_path) as server,
        triton_grpc.InferenceServerClient(server.grpc_url) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        x = triton_grpc.InferInput("x", [1, 2], "FP32")
        x.set_data_from_numpy(np.ones((1, 2), np.float32))

        def infer(wait):
            time.sleep(wait)
            client.infer("slow", [x])

        for _ in range(PAIRS):
            list(pool.map(infer, (0.0, 0.007)))
            time.sleep(0.1)  # the batcher falls asleep
        (model,) = client.get_inference_statistics("slow").model_stats
    assert model.inference_stats.success.count == 2 * PAIRS
    assert model.inference_stats.queue.ns / 1e6 < PAIRS * 60
