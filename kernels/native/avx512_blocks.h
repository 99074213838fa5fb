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

inline __m512 load(const float* p) { return _mm512_loadu_ps(p); }

inline __m512 load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

inline __m512 load(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// The first `count` of 16; the others are zero, and nothing is read there.
template <class Element>
inline __m512 load_part(const Element* p, int64_t count) {
  if (count == kLanes) return load(p);
  Element lanes[kLanes] = {};
  std::memcpy(lanes, p, count * sizeof(Element));
  return load(lanes);
}

inline void store(float* p, __m512 value) { _mm512_storeu_ps(p, value); }

inline void store(Half* p, __m512 value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

inline void store(BFloat16* p, __m512 value) {  // to nearest, ties to even; a NaN stays one
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(1 << 22));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

// The first `count` of 16; nothing is written behind them.
template <class Element>
inline void store_part(Element* p, __m512 value, int64_t count) {
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

// The latest rows of one channel block: image row y at slot y % slots, [slots][pitch][16], column x at x + border.
class RowRing {
 public:
  RowRing(int64_t rows, int64_t width, int64_t border = kBorder)
      : mask_(std::bit_ceil<uint64_t>(rows) - 1),
        pitch_((width + kColumns - 1) / kColumns * kColumns + 2 * border),
        border_(border) {}

  int64_t floats() const { return (mask_ + 1) * pitch_ * kLanes; }

  // `data` holds floats().
  void place(float* data) {
    data_ = data;
    std::memset(data, 0, floats() * sizeof(float));  // the borders stay so
  }

  float* at(int64_t y, int64_t x) const { return data_ + ((y & mask_) * pitch_ + border_ + x) * kLanes; }

 private:
  int64_t mask_, pitch_, border_;
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
template <class Element>
inline void pack_weight(const Element* weight, int64_t taps, float* packed) {
  for (int64_t tap = 0; tap < taps; tap += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, taps - tap);
    __m512 rows[kLanes];
    for (int channel = 0; channel < kLanes; ++channel) rows[channel] = load_part(weight + channel * taps + tap, count);
    transpose(rows);
    for (int64_t i = 0; i < count; ++i) _mm512_store_ps(packed + (tap + i) * kLanes, rows[i]);
  }
}

// Row y of one channel block for each ring.
template <class Element>
inline void pack_row(const DepthwiseShape& s, const Element* image, int64_t y, const RowRing* rings, int64_t blocks) {
  const Element* pixel = image + y * s.width * s.channels;
  float* rows[kGroup];
  for (int64_t b = 0; b < blocks; ++b) rows[b] = rings[b].at(y, 0);
  for (int64_t x = 0; x < s.width; ++x, pixel += s.channels)
    for (int64_t b = 0; b < blocks; ++b) _mm512_store_ps(rows[b] + x * kLanes, load(pixel + b * kLanes));
}

}  // namespace widefield

#pragma GCC pop_options
