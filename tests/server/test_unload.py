"""tritonserver destroys a model only after the load that replaced it is done, and loads none meanwhile: else it
touches freed memory."""

import time

import pytest
from preloaded import compile_program, output_of

from server import TritonServer
from server import management as management_module
from server.canary import ask
from server.management import Management
from server.tritonserver_options import MANAGEMENT_HEADER

DELAY = 0.1  # seconds
THREADS = r"""
#include <chrono>
#include <cstdio>
#include <thread>

using namespace std::chrono;
struct ModelDeleter { void operator()(steady_clock::time_point* at) const { *at = steady_clock::now(); } };
struct Other { void operator()(steady_clock::time_point* at) const { *at = steady_clock::now(); } };

int main() {
  const auto begin = steady_clock::now();
  steady_clock::time_point deleter, other;
  std::thread first(ModelDeleter(), &deleter), second(Other(), &other);
  first.join();
  second.join();
  std::printf("%f %f\n", duration<double>(deleter - begin).count(), duration<double>(deleter - other).count());
}
"""


def test_only_the_thread_that_destroys_a_model_waits(tmp_path):
    after_begin, after_other = map(float, output_of(compile_program(tmp_path, THREADS)).split())
    assert after_begin >= DELAY
    assert after_other > 0


@pytest.mark.server
def test_tritonserver_destroys_a_model_in_such_a_thread(light_repository, management_token):
    def manage(path):
        return ask(server.http_url, "POST", f"/v2/repository/{path}", 10, b"{}", {MANAGEMENT_HEADER: management_token})

    with TritonServer(light_repository, management_token=management_token) as server:
        begin = time.monotonic()
        manage("models/sleepy/unload")
        states = []
        while (time.monotonic() - begin) < 10 and "UNAVAILABLE" not in states:
            (model,) = manage("index")
            states.append(model["state"])
        assert states[-1] == "UNAVAILABLE"
        assert time.monotonic() - begin >= DELAY
        assert set(states[:-1]) == {"UNLOADING"}


@pytest.mark.parametrize(("unloading", "asked"), [(0, 1), (2, 3), (1000, 4)])
def test_a_load_waits_for_what_is_being_unloaded(monkeypatch, unloading, asked):
    """The wait has a limit."""
    requests, now = [], [0.0]

    def answer(address, method, path, *_):
        requests.append(path)
        state = "UNLOADING" if len(requests) <= unloading else "UNAVAILABLE"
        versions = [{"name": "backbone", "version": "2", "state": "READY"}, {"name": "never loaded"}]
        return [*versions, {"name": "backbone", "version": "1", "state": state}]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(management_module, "ask", answer)
    monkeypatch.setattr(management_module, "UNLOAD_SECONDS", 2.5 * management_module.POLL)
    monkeypatch.setattr(management_module.time, "sleep", sleep)
    monkeypatch.setattr(management_module.time, "monotonic", lambda: now[0])
    Management("127.0.0.1:1", "token", 300).load("backbone")
    assert requests == ["/v2/repository/index"] * asked + ["/v2/repository/models/backbone/load"]
    assert now[0] == pytest.approx((asked - 1) * management_module.POLL + management_module.REST)
