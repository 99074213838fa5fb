// Preloaded into tritonserver: its dynamic batcher looks at its queue every millisecond, not every half second.
//
// With a queue policy (default_timeout_microseconds, allow_timeout_override or max_queue_size) the batcher gives out a
// request only where an instance is idle, and what should tell it of that is lost now and then: a request that comes
// while all are busy, or just as one is done, then waits for the next request, or for the end of the batcher's sleep of
// half a second (docs/serving.md). Here that sleep is cut up. pthread_cond_clockwait may return early at any time, so
// whoever calls it looks again whether there is something to do; a thread that nobody woke for long looks less often.
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <time.h>

#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t kMillisecond = 1000000;  // ns
// The batcher's 500 ms, less what passes until it is here.
constexpr int64_t kShortest = 450 * kMillisecond, kLongest = 500 * kMillisecond;
constexpr int64_t kBusy = kMillisecond, kIdle = 50 * kMillisecond;
constexpr int kBusyLooks = 1000;  // in vain, until a thread is idle

thread_local int looks = 0;
thread_local int64_t deadline = 0;  // of the sleep that is being cut up

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
