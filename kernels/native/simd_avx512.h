// Vectors of 16 floats. Included under `#pragma GCC target("avx512f")` or more.
#pragma once

#include <immintrin.h>

#include "depthwise_conv2d_cpu.h"

namespace widefield {
namespace {

// Sizes that fit 32 registers.
constexpr int kLanes = 16;       // channels in a vector
constexpr int kColumns = 7;      // output columns in a tile of two rows: 14 and 28 divide by it; 14 sums hide the latency
constexpr bool kHoldsTaps = true;  // registers hold a filter row of 3 or 5 taps; 7 would spill
constexpr int kTapColumns = 13;  // taps in a tile of two rows of the filter's gradient, square up to kSquareTaps
constexpr int kSquareTaps = 5;
using Vector = __m512;

inline Vector zero() { return _mm512_setzero_ps(); }
inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
inline Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm512_fmadd_ps(a, b, sum); }
inline Vector relu(Vector value) { return _mm512_max_ps(_mm512_setzero_ps(), value); }  // this order keeps a NaN

inline Vector load_aligned(const float* p) { return _mm512_load_ps(p); }
inline void store_aligned(float* p, Vector value) { _mm512_store_ps(p, value); }
inline void stream(float* p, Vector value) { _mm512_stream_ps(p, value); }

inline Vector load(const float* p) { return _mm512_loadu_ps(p); }

inline Vector load(const Half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }

inline Vector load(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline void store(float* p, Vector value) { _mm512_storeu_ps(p, value); }

inline void store(Half* p, Vector value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

inline void store(BFloat16* p, Vector value) {  // to nearest, ties to even; a NaN stays one
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_epi32(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(1 << 22));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

// rows[i][j] -> rows[j][i]
inline void transpose(Vector (&rows)[kLanes]) {
  Vector pairs[kLanes];
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
    const Vector low01 = _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0x44);
    const Vector high01 = _mm512_shuffle_f32x4(rows[i], rows[i + 4], 0xee);
    const Vector low23 = _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], 0x44);
    const Vector high23 = _mm512_shuffle_f32x4(rows[i + 8], rows[i + 12], 0xee);
    pairs[i] = _mm512_shuffle_f32x4(low01, low23, 0x88);
    pairs[i + 4] = _mm512_shuffle_f32x4(low01, low23, 0xdd);
    pairs[i + 8] = _mm512_shuffle_f32x4(high01, high23, 0x88);
    pairs[i + 12] = _mm512_shuffle_f32x4(high01, high23, 0xdd);
  }
  std::copy(std::begin(pairs), std::end(pairs), std::begin(rows));
}

}  // namespace
}  // namespace widefield
