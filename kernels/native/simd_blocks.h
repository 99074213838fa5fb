// Blocks of kLanes channels copied from channels_last memory: image rows to a ring, filters tap by tap.
#pragma once

#include "depthwise_conv2d_cpu.h"

namespace widefield {
namespace {

constexpr int kGroup = 4;  // channel blocks copied in one pass over the image: adjacent cache lines
constexpr int kBorder = kColumns - 1;  // zero columns left and right: a tile's taps reach at most this far outside

// Loads the first `count` lanes; the others are zero, and their memory is not read.
template <class Element>
inline Vector load_part(const Element* p, int64_t count) {
  if (count == kLanes) return load(p);
  Element lanes[kLanes] = {};
  std::memcpy(lanes, p, count * sizeof(Element));
  return load(lanes);
}

// Stores only the first `count` lanes.
template <class Element>
inline void store_part(Element* p, Vector value, int64_t count) {
  if (count == kLanes) return store(p, value);
  Element lanes[kLanes];
  store(lanes, value);
  std::memcpy(p, lanes, count * sizeof(Element));
}

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

inline Buffer allocate(int64_t floats) {
  const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
  Buffer buffer(static_cast<float*>(std::aligned_alloc(64, bytes)));
  if (!buffer) throw std::bad_alloc();
  return buffer;
}

// Returns this thread's buffer of at least `floats`, valid until its next call. It is kept, since threads that allocate
// at once wait for each other in the kernel if the allocator has one arena, longer than a small layer takes.
inline float* scratch(int64_t floats) {
  thread_local Buffer buffer;
  thread_local int64_t size = 0;
  if (size < floats) {
    buffer = allocate(floats);
    size = floats;
  }
  return buffer.get();
}

// Calls f(0) ... f(N - 1) with constants, so that arrays indexed by them stay in registers: the compiler unrolls loops
// too late for that.
template <int N, class Function>
[[gnu::always_inline]] inline void unroll(Function&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

// The latest rows of one channel block, [slots][pitch][lanes]: image row y is in slot y % slots, column x at x +
// border.
class RowRing {
 public:
  RowRing(int64_t rows, int64_t width, int64_t border = kBorder)
      : mask_(std::bit_ceil<uint64_t>(rows) - 1),
        pitch_((width + kColumns - 1) / kColumns * kColumns + 2 * border),
        border_(border) {}

  int64_t floats() const { return (mask_ + 1) * pitch_ * kLanes; }

  // `data` has room for floats().
  void place(float* data) {
    data_ = data;
    std::memset(data, 0, floats() * sizeof(float));  // the borders stay 0
  }

  float* at(int64_t y, int64_t x) const { return data_ + ((y & mask_) * pitch_ + border_ + x) * kLanes; }

 private:
  int64_t mask_, pitch_, border_;
  float* data_ = nullptr;
};

// [lanes][taps] -> [taps][lanes]
template <class Element>
inline void pack_weight(const Element* weight, int64_t taps, float* packed) {
  for (int64_t tap = 0; tap < taps; tap += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, taps - tap);
    Vector rows[kLanes];
    for (int channel = 0; channel < kLanes; ++channel) rows[channel] = load_part(weight + channel * taps + tap, count);
    transpose(rows);
    for (int64_t i = 0; i < count; ++i) store_aligned(packed + (tap + i) * kLanes, rows[i]);
  }
}

// Copies row y of one channel block to each ring.
template <class Element>
inline void pack_row(const DepthwiseShape& s, const Element* image, int64_t y, const RowRing* rings, int64_t blocks) {
  const Element* pixel = image + y * s.width * s.channels;
  float* rows[kGroup];
  for (int64_t b = 0; b < blocks; ++b) rows[b] = rings[b].at(y, 0);
  for (int64_t x = 0; x < s.width; ++x, pixel += s.channels)
    for (int64_t b = 0; b < blocks; ++b) store_aligned(rows[b] + x * kLanes, load(pixel + b * kLanes));
}

}  // namespace
}  // namespace widefield
