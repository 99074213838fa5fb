// Preloaded into tritonserver: a load that replaces a model and the destruction of the old one do not hurt each other.
//
// tritonserver destroys a model in a separate thread, which marks the model's entry (a ModelInfo) in the server's table
// as unloaded, then looks the entry up by its address and removes it. A load that replaces the same version (as each
// load of a backbone does with its ensemble) deletes a marked entry itself, while it holds the entry's mutex: it then
// unlocks a mutex in freed memory, and the thread may remove the next entry that has the same address (README.md). Here
// the thread starts a tenth of a second later, when the load finds no mark.
#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <typeinfo>

// std::thread::_State, the function that a std::thread runs, which is private from GCC 16 on. Not in the namespace below,
// in which the compiler would take Later for its only kind.
struct Task {
  virtual ~Task() = default;
  virtual void run() = 0;
};

namespace {

using State = std::unique_ptr<Task>;
constexpr auto kDelay = std::chrono::milliseconds(100);

struct Later : Task {
  explicit Later(State state) : state(std::move(state)) {}
  void run() override {
    std::this_thread::sleep_for(kDelay);
    state->run();
  }
  State state;
};

}  // namespace

// std::thread::_M_start_thread(State, void (*)()), which libstdc++ exports; `state` is passed by reference.
extern "C" __attribute__((visibility("default"))) void
_ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EEPFvvE(
    std::thread* thread, State* state, void (*depend)()) {
  using Start = void (*)(std::thread*, State*, void (*)());
  static const auto start = reinterpret_cast<Start>(dlsym(RTLD_NEXT, __func__));
  const Task& task = **state;
  if (std::strstr(typeid(task).name(), "ModelDeleter")) *state = std::make_unique<Later>(std::move(*state));
  start(thread, state, depend);
}
