"""tritonserver destroys a model only after the load that replaced it is done, and loads none meanwhile: else it
touches freed memory."""

import shutil
import subprocess
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


# The load is held up for longer than the fix's delay, in the thread that starts a model's destruction.
SLOW_LOADS = r"""
#include <dlfcn.h>
#include <malloc.h>
#include <pthread.h>
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <typeinfo>

extern "C" void __libc_free(void*);
struct Task { virtual ~Task(); virtual void run() = 0; };
using State = std::unique_ptr<Task>;
thread_local int slow = 0;             // unlocks
thread_local char* freed = nullptr;    // the last block of the size of a ModelInfo

extern "C" void _ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE(
    std::thread* thread, State* state, void (*depend)()) {
  using Start = void (*)(std::thread*, State*, void (*)());
  static const auto start = reinterpret_cast<Start>(dlsym(RTLD_NEXT, __func__));
  const Task& task = **state;
  const char* name = typeid(task).name();
  if (std::strstr(name, "ModelDeleter") || std::strstr(name, "Later")) slow = 6;
  start(thread, state, depend);
}

extern "C" void free(void* memory) {
  if (memory && malloc_usable_size(memory) == 792) freed = static_cast<char*>(memory);
  __libc_free(memory);
}

extern "C" int pthread_mutex_unlock(pthread_mutex_t* mutex) {
  using Unlock = int (*)(pthread_mutex_t*);
  static const auto unlock = reinterpret_cast<Unlock>(dlsym(RTLD_NEXT, "pthread_mutex_unlock"));
  char* place = reinterpret_cast<char*>(mutex);
  if (freed && place >= freed && place < freed + 792) {
    std::fputs("a mutex was unlocked in freed memory\n", stderr);
    _exit(99);
  }
  const int result = unlock(mutex);
  if (slow > 0 && slow--) usleep(200000);
  return result;
}
"""


@pytest.mark.server
def test_a_load_that_is_held_up_unlocks_no_freed_mutex(light_repository, management_token, monkeypatch, tmp_path):
    repository = shutil.copytree(light_repository, tmp_path / "models")
    source, shim = tmp_path / "shim.cpp", tmp_path / "shim.so"
    source.write_text(SLOW_LOADS)
    subprocess.run(["g++", "-std=c++20", "-shared", "-fPIC", str(source), "-o", str(shim)], check=True)
    monkeypatch.setenv("LD_PRELOAD", str(shim))
    with TritonServer(repository, management_token=management_token, max_restarts=0) as server:
        monkeypatch.delenv("LD_PRELOAD")
        headers = {MANAGEMENT_HEADER: management_token}
        for _ in range(3):
            (repository / "sleepy" / "1" / "model.py").touch()  # so that it is loaded anew
            ask(server.http_url, "POST", "/v2/repository/models/sleepy/load", 60, b"{}", headers)
        (model,) = ask(server.http_url, "POST", "/v2/repository/index", 10, b"{}", headers)
        assert model["state"] == "READY"
        assert server.ready


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
