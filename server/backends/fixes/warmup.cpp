// Preloaded into tritonserver: a model whose warm-up fails is refused with the reason, instead of ending the server.
//
// The thread that loads a model waits for its warm-up, which another thread runs, and destroys the model where that
// fails. It then asks the other thread for its models, which are in that thread's list again only a moment after it has
// told of the failure; in most cases the list is empty, and tritonserver crashes (docs/serving.md). Here who has
// waited for a failure (a std::future of a Status that is not a success) comes back a little later.
#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <future>
#include <thread>
#include <typeinfo>

namespace {

using Result = std::__future_base::_Result_base;
using Pointer = std::unique_ptr<Result, Result::_Deleter>;
constexpr auto kDelay = std::chrono::milliseconds(100);

// `status`: of the future's state, where its result stands right before it. A Status begins with its code, one byte.
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
