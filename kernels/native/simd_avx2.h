// Vectors of 8 floats. Included under `#pragma GCC target("avx2,fma,f16c")`.
#pragma once

#include <immintrin.h>

#include "depthwise_conv2d_cpu.h"

namespace widefield {
namespace {

// Sizes that fit 16 registers; simd_avx512.h explains them.
constexpr int kLanes = 8;
constexpr int kColumns = 4;
constexpr bool kHoldsTaps = false;
constexpr int kTapColumns = 5;
constexpr int kSquareTaps = 3;
using Vector = __m256;

inline Vector zero() { return _mm256_setzero_ps(); }
inline Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
inline Vector multiply_add(Vector a, Vector b, Vector sum) { return _mm256_fmadd_ps(a, b, sum); }
inline Vector relu(Vector value) { return _mm256_max_ps(_mm256_setzero_ps(), value); }  // this order keeps a NaN

inline Vector load_aligned(const float* p) { return _mm256_load_ps(p); }
inline void store_aligned(float* p, Vector value) { _mm256_store_ps(p, value); }
inline void stream(float* p, Vector value) { _mm256_stream_ps(p, value); }

inline Vector load(const float* p) { return _mm256_loadu_ps(p); }

inline Vector load(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

inline Vector load(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

inline void store(float* p, Vector value) { _mm256_storeu_ps(p, value); }

inline void store(Half* p, Vector value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}

inline void store(BFloat16* p, Vector value) {  // to nearest, ties to even; a NaN stays one
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const __m256i kept = _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, _mm256_set1_epi32(1 << 22)), nan);
  const __m256i halves = _mm256_srli_epi32(kept, 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(halves, halves), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

// rows[i][j] -> rows[j][i]
inline void transpose(Vector (&rows)[kLanes]) {
  Vector pairs[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4)
    for (int j = 0; j < 2; ++j) {
      rows[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0x44);
      rows[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + j + 2], 0xee);
    }
  for (int i = 0; i < 4; ++i) {  // 128-bit halves: half h of rows[4 * q + i] holds lanes 4 q .. 4 q + 3 of column 4 h + i
    pairs[i] = _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20);
    pairs[i + 4] = _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31);
  }
  std::copy(std::begin(pairs), std::end(pairs), std::begin(rows));
}

}  // namespace
}  // namespace widefield
