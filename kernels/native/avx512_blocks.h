// Blocks of 16 channels out of channels_last memory: image rows in a ring, filters one tap after the other.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "depthwise_conv2d_avx512.h"

#pragma GCC push_options
#pragma GCC target("avx512f")

namespace widefield {

constexpr int kLanes = 16;   // channels in a vector
constexpr int kColumns = 7;  // output columns in a tile: 14 and 28 divide by it; 2 x 7 accumulators hide the latency
constexpr int kGroup = 4;    // channel blocks that are copied in one sweep over the image: cache lines side by side
constexpr int kBorder = kColumns - 1;  // zero columns left and right: a tile's taps reach at most this far outside

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

inline Buffer allocate(int64_t floats) {
  const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
  return Buffer(static_cast<float*>(std::aligned_alloc(64, bytes)));
}

// At least `floats`, of this thread, until its next call: threads that allocate at the same time wait for each other in
// the kernel where the allocator has one arena, for longer than a small layer takes.
inline float* scratch(int64_t floats) {
  thread_local Buffer buffer;
  thread_local int64_t size = 0;
  if (size < floats) {
    buffer = allocate(floats);
    size = floats;
  }
  return buffer.get();
}

// f(0) ... f(N - 1) with constants, so that what they index can live in registers: a loop is unrolled too late for that.
template <int N, class Function>
[[gnu::always_inline]] inline void unroll(Function&& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, I>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

// The latest rows of one channel block: image row y at slot y % slots, [slots][pitch][16], column x at x + kBorder.
class RowRing {
 public:
  RowRing(int64_t rows, int64_t width)
      : mask_(std::bit_ceil<uint64_t>(rows) - 1),
        pitch_((width + kColumns - 1) / kColumns * kColumns + 2 * kBorder) {}

  int64_t floats() const { return (mask_ + 1) * pitch_ * kLanes; }

  // `data` holds floats().
  void place(float* data) {
    data_ = data;
    std::memset(data, 0, floats() * sizeof(float));  // the borders stay so
  }

  float* at(int64_t y, int64_t x) const { return data_ + ((y & mask_) * pitch_ + kBorder + x) * kLanes; }

 private:
  int64_t mask_, pitch_;
  float* data_ = nullptr;
};

// rows[i][j] -> rows[j][i]
inline void transpose(__m512 (&rows)[kLanes]) {
  __m512 pairs[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d first = _mm512_castps_pd(pairs[i + j]), second = _mm512_castps_pd(pairs[i + j + 2]);
      rows[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(first, second));
      rows[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(first, second));
    }
  }
  for (int i = 0; i < 4; ++i) {  // 128-bit blocks: block b of rows[4 * q + i] holds lanes 4 q .. 4 q + 3 of column 4 b + i
    const __m512 low01 = _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0x44);
    const __m512 high01 = _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0xee);
    const __m512 low23 = _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], 0x44);
    const __m512 high23 = _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], 0xee);
    pairs[i] = _mm512_shuffle_f32x4(low01, low23, 0x88);
    pairs[i + 4] = _mm512_shuffle_f32x4(low01, low23, 0xdd);
    pairs[i + 8] = _mm512_shuffle_f32x4(high01, high23, 0x88);
    pairs[i + 12] = _mm512_shuffle_f32x4(high01, high23, 0xdd);
  }
  std::copy(std::begin(pairs), std::end(pairs), std::begin(rows));
}

// [16][taps] -> [taps][16]
inline void pack_weight(const float* weight, int64_t taps, float* packed) {
  for (int64_t tap = 0; tap < taps; tap += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, taps - tap);
    const __mmask16 inside = static_cast<__mmask16>((1u << count) - 1);
    __m512 rows[kLanes];
    for (int channel = 0; channel < kLanes; ++channel)
      rows[channel] = _mm512_maskz_loadu_ps(inside, weight + channel * taps + tap);
    transpose(rows);
    for (int64_t i = 0; i < count; ++i) _mm512_store_ps(packed + (tap + i) * kLanes, rows[i]);
  }
}

// Image rows [y, end) of one channel block for each ring.
inline void pack_rows(const DepthwiseShape& s, const float* image, int64_t y, int64_t end,
                             const RowRing* rings, int64_t blocks) {
  for (; y < end; ++y) {
    const float* pixel = image + y * s.width * s.channels;
    float* rows[kGroup];
    for (int64_t b = 0; b < blocks; ++b) rows[b] = rings[b].at(y, 0);
    for (int64_t x = 0; x < s.width; ++x, pixel += s.channels)
      for (int64_t b = 0; b < blocks; ++b)
        _mm512_store_ps(rows[b] + x * kLanes, _mm512_loadu_ps(pixel + b * kLanes));
  }
}

}  // namespace widefield

#pragma GCC pop_options
