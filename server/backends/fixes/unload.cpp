// Preloaded into tritonserver: a model that nobody needs any more is destroyed a tenth of a second later.
//
// tritonserver destroys a model in a thread of its own, which marks the model's entry in the server's books as
// unloaded, and then looks it up and removes it. A load that replaces the same version (as each load of a backbone does
// with its ensemble) frees the entry itself where it finds the mark, which is too early: it then unlocks a mutex in
// freed memory, and the thread may remove the entry of the next model, which lies there by now. tritonserver crashes,
// or hangs for good (docs/serving.md). With the thread a little later, the load finds no mark, and leaves the entry to
// it.
#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <typeinfo>

namespace {

using State = std::unique_ptr<std::thread::_State>;  // what a std::thread runs
constexpr auto kDelay = std::chrono::milliseconds(100);

struct Later : std::thread::_State {
  explicit Later(State state) : state(std::move(state)) {}
  void _M_run() override {
    std::this_thread::sleep_for(kDelay);
    state->_M_run();
  }
  State state;
};

}  // namespace

// std::thread::_M_start_thread(State, void (*)()), which libstdc++ exports: `state` comes by reference.
extern "C" __attribute__((visibility("default"))) void
_ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE(
    std::thread* thread, State* state, void (*depend)()) {
  using Start = void (*)(std::thread*, State*, void (*)());
  static const auto start = reinterpret_cast<Start>(dlsym(RTLD_NEXT, __func__));
  const std::thread::_State& task = **state;
  if (std::strstr(typeid(task).name(), "ModelDeleter")) *state = std::make_unique<Later>(std::move(*state));
  start(thread, state, depend);
}
