// Preloaded into tritonserver: a failed warm-up makes the load fail with the reason, instead of crashing the server.
//
// The thread that loads a model waits for the warm-up, which another thread runs, and destroys the model if it fails.
// To do so it reads the other thread's list of models, which is filled again only a moment after the failure is
// reported; usually the list is still empty, and tritonserver crashes (README.md). Here the wait for a failure (a
// std::future of a Status that is not a success) returns a little later.
#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <future>
#include <thread>
#include <typeinfo>

namespace {

using Result = std::__future_base::_Result_base;
using Pointer = std::unique_ptr<Result, Result::_Deleter>;
constexpr auto kDelay = std::chrono::seconds(1);  // a busy machine may hold the thread up

// `status`: a member of the future's state; the result is stored right before it. A Status begins with a one-byte code.
bool is_failure(const unsigned* status) {
  const Result* result = reinterpret_cast<const Pointer*>(status)[-1].get();
  return result && !std::strcmp(typeid(*result).name(), "NSt13__future_base7_ResultIN6triton4core6StatusEEE") &&
         *reinterpret_cast<const unsigned char*>(result + 1) != 0;
}

}  // namespace

// std::__atomic_futex_unsigned_base::_M_futex_wait_until(unsigned*, unsigned, bool, seconds, nanoseconds), which
// libstdc++ exports.
extern "C" __attribute__((visibility("default"))) bool
_ZNSt28__atomic_futex_unsigned_base19_M_futex_wait_untilEPjjbNSt6chrono8durationIlSt5ratioILl1ELl1EEEENS2_IlS3_ILl1ELl1000000000EEEE(
    void* self, unsigned* status, unsigned value, bool has_timeout, std::chrono::seconds s, std::chrono::nanoseconds ns) {
  using Wait = bool (*)(void*, unsigned*, unsigned, bool, std::chrono::seconds, std::chrono::nanoseconds);
  static const auto wait = reinterpret_cast<Wait>(dlsym(RTLD_NEXT, __func__));
  const bool woken = wait(self, status, value, has_timeout, s, ns);
  if (is_failure(status)) std::this_thread::sleep_for(kDelay);
  return woken;
}
