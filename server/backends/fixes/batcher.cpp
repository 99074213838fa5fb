// Preloaded into tritonserver: its dynamic batcher checks its queue every millisecond instead of every half second.
//
// With a queue policy (default_timeout_microseconds, allow_timeout_override or max_queue_size) the batcher sometimes
// misses the wake-up for a request (README.md). This splits its sleep: pthread_cond_clockwait may return early at any
// time, so its caller checks its condition again. A thread that was not woken for a second checks less often.
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t kMillisecond = 1000000;  // ns
// The batcher's 500 ms, less the time until this is called.
constexpr int64_t kShortest = 450 * kMillisecond, kLongest = 500 * kMillisecond;
constexpr int64_t kBusy = kMillisecond, kIdle = 50 * kMillisecond;
constexpr int kBusyLooks = 1000;  // without a wake-up, until a thread counts as idle

thread_local int looks = 0;
thread_local int64_t deadline = 0;  // of the sleep that is being split

int64_t nanoseconds(const timespec& t) { return t.tv_sec * 1000 * kMillisecond + t.tv_nsec; }

}  // namespace

extern "C" __attribute__((visibility("default"))) int pthread_cond_clockwait(pthread_cond_t* condition,
                                                                             pthread_mutex_t* mutex, clockid_t clock,
                                                                             const timespec* until) {
  using Wait = int (*)(pthread_cond_t*, pthread_mutex_t*, clockid_t, const timespec*);
  static const auto wait = reinterpret_cast<Wait>(dlsym(RTLD_NEXT, "pthread_cond_clockwait"));
  timespec now;
  if (clock_gettime(clock, &now) != 0) return wait(condition, mutex, clock, until);
  const int64_t end = nanoseconds(*until), left = end - nanoseconds(now);
  if (end != deadline && (left <= kShortest || left > kLongest)) return wait(condition, mutex, clock, until);

  deadline = end;
  const int64_t sooner = std::min(end, nanoseconds(now) + (looks < kBusyLooks ? kBusy : kIdle));
  const timespec look{sooner / (1000 * kMillisecond), sooner % (1000 * kMillisecond)};
  const int woken = wait(condition, mutex, clock, &look);
  looks = woken == 0 ? 0 : std::min(looks + 1, kBusyLooks);
  return woken == ETIMEDOUT && sooner < end ? 0 : woken;
}
