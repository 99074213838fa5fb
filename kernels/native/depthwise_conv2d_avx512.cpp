// A 16-channel block at a time: its input is copied to a zero-bordered buffer that stays in the cache (channels_last
// rows lie `channels` floats apart and would fall on the same cache sets), its filters to [Kh*Kw][16]. Then a tile of
// two rows by seven columns is accumulated in 14 registers; each input vector that is loaded serves both rows.
#include "depthwise_conv2d_avx512.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>

#define AVX512 __attribute__((target("avx512f")))

namespace widefield {
namespace {

constexpr int kLanes = 16;     // channels in a vector
constexpr int kColumns = 7;    // output columns in a tile: 14 and 28 divide by it, and 2 x 7 accumulators hide the latency
constexpr int kBorder = kColumns - 1;  // zero columns left and right: a tile's taps reach at most this far outside

struct Free {
  void operator()(float* p) const { std::free(p); }
};
using Buffer = std::unique_ptr<float[], Free>;

Buffer allocate(int64_t floats) {
  const size_t bytes = (floats * sizeof(float) + 63) / 64 * 64;
  return Buffer(static_cast<float*>(std::aligned_alloc(64, bytes)));
}

// Image rows [first, last) of one channel block: [rows][pitch][16], image column x at x + kBorder.
struct PackedRows {
  const float* data;
  int64_t first, last, pitch;
};

AVX512 void pack_weight(const float* weight, int64_t taps, float* packed) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i index = _mm512_mullo_epi32(lane, _mm512_set1_epi32(static_cast<int>(taps)));
  for (int64_t tap = 0; tap < taps; ++tap)
    _mm512_store_ps(packed + tap * kLanes, _mm512_i32gather_ps(index, weight + tap, sizeof(float)));
}

AVX512 PackedRows pack_rows(const DepthwiseShape& s, const float* image, int64_t first, int64_t last, float* packed) {
  const int64_t right = s.width + kBorder;
  const int64_t pitch = (s.width + kColumns - 1) / kColumns * kColumns + 2 * kBorder;
  for (int64_t y = first; y < last; ++y) {
    float* row = packed + (y - first) * pitch * kLanes;
    std::memset(row, 0, kBorder * kLanes * sizeof(float));
    for (int64_t x = 0; x < s.width; ++x)
      _mm512_store_ps(row + (kBorder + x) * kLanes, _mm512_loadu_ps(image + (y * s.width + x) * s.channels));
    std::memset(row + right * kLanes, 0, (pitch - right) * kLanes * sizeof(float));
  }
  return {packed, first, last, pitch};
}

// acc[i][t] += input[t + k] * weight[i][k] for the taps k in [begin, end) of one filter row per output row.
template <int Rows>
AVX512 inline void add_taps(const float* input, const float* const (&weight)[Rows], int64_t begin, int64_t end,
                            __m512 (&acc)[Rows][kColumns]) {
  for (int64_t k = begin; k < end; ++k) {
    __m512 filter[Rows];
    for (int i = 0; i < Rows; ++i) filter[i] = _mm512_load_ps(weight[i] + k * kLanes);
#pragma GCC unroll 7
    for (int t = 0; t < kColumns; ++t) {
      const __m512 value = _mm512_load_ps(input + (k + t) * kLanes);
      for (int i = 0; i < Rows; ++i) acc[i][t] = _mm512_fmadd_ps(value, filter[i], acc[i][t]);
    }
  }
}

AVX512 inline __m512 activate(__m512 value, Activation activation) {
  if (activation == Activation::relu) return _mm512_max_ps(_mm512_setzero_ps(), value);  // this order keeps a NaN
  if (activation == Activation::gelu) {
    alignas(64) float lanes[kLanes];
    _mm512_store_ps(lanes, value);
    for (float& x : lanes) x = 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
    return _mm512_load_ps(lanes);
  }
  return value;
}

// Output rows y .. y + Rows - 1 of one channel block.
template <int Rows>
AVX512 void convolve_rows(const DepthwiseShape& s, const PackedRows& in, const float* weight, const float* bias,
                          Activation activation, int64_t y, float* output) {
  const int64_t pad_y = s.kernel_height / 2, pad_x = s.kernel_width / 2, row_taps = s.kernel_width * kLanes;
  const __m512 start = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
  for (int64_t x = 0; x < s.width; x += kColumns) {
    __m512 acc[Rows][kColumns];
    for (auto& row : acc)
      for (auto& value : row) value = start;
    const int64_t begin = std::max<int64_t>(0, pad_x - x - kBorder);  // taps that touch the image in any column
    const int64_t end = std::min(s.kernel_width, s.width - x + pad_x);
    const int64_t top = std::max<int64_t>(0, y - pad_y);
    const int64_t bottom = std::min(s.height, y + Rows - 1 + s.kernel_height - pad_y);
    for (int64_t r = top; r < bottom; ++r) {
      const float* input = in.data + ((r - in.first) * in.pitch + x - pad_x + kBorder) * kLanes;
      const int64_t ky = r - y + pad_y;  // the filter row of output row y; of row y + 1 it is ky - 1
      if constexpr (Rows == 2) {
        if (ky < s.kernel_height && ky > 0) {
          add_taps<2>(input, {weight + ky * row_taps, weight + (ky - 1) * row_taps}, begin, end, acc);
          continue;
        }
      }
      const int i = ky < s.kernel_height ? 0 : 1;
      __m512 one[1][kColumns];
      std::copy(std::begin(acc[i]), std::end(acc[i]), std::begin(one[0]));
      add_taps<1>(input, {weight + (ky - i) * row_taps}, begin, end, one);
      std::copy(std::begin(one[0]), std::end(one[0]), std::begin(acc[i]));
    }
    const int64_t columns = std::min<int64_t>(kColumns, s.width - x);
    for (int i = 0; i < Rows; ++i)
      for (int64_t t = 0; t < columns; ++t)
        _mm512_storeu_ps(output + ((y + i) * s.width + x + t) * s.channels, activate(acc[i][t], activation));
  }
}

// Output rows [y, end) of one channel block of one image.
void convolve(const DepthwiseShape& s, const PackedRows& in, const float* weight, const float* bias,
              Activation activation, int64_t y, int64_t end, float* output) {
  for (; y + 2 <= end; y += 2) convolve_rows<2>(s, in, weight, bias, activation, y, output);
  if (y < end) convolve_rows<1>(s, in, weight, bias, activation, y, output);
}

}  // namespace

bool depthwise_conv2d_avx512_suits(const DepthwiseShape& s) {
  static const bool has_avx512 = __builtin_cpu_supports("avx512f");
  const int64_t taps = s.kernel_height * s.kernel_width;
  return has_avx512 && s.channels % kLanes == 0 && taps >= 121 && s.batch * s.channels * s.height * s.width > 0 && taps * (kLanes - 1) <= INT32_MAX;
}

void depthwise_conv2d_avx512(const DepthwiseShape& s, const float* input, const float* weight, const float* bias,
                             Activation activation, float* output, int threads, const ParallelFor& parallel_for) {
  const int64_t blocks = s.channels / kLanes, taps = s.kernel_height * s.kernel_width;
  // Rows are split only where blocks and images alone would leave threads idle.
  const int64_t wanted = (4 * threads + blocks * s.batch - 1) / (blocks * s.batch);
  const int64_t parts = std::clamp<int64_t>(std::min(wanted, s.height / 8), 1, s.height);
  const int64_t part_rows = (s.height + parts - 1) / parts;
  const int64_t pad_y = s.kernel_height / 2;
  const int64_t pitch = (s.width + kColumns - 1) / kColumns * kColumns + 2 * kBorder;
  const int64_t packed_rows = std::min(s.height, part_rows + 2 * pad_y);

  parallel_for(blocks * s.batch * parts, [&](int64_t begin, int64_t end) {
    const Buffer filters = allocate(taps * kLanes);
    const Buffer rows = allocate(packed_rows * pitch * kLanes);
    int64_t packed_block = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / (s.batch * parts), n = task / parts % s.batch, part = task % parts;
      const int64_t channel = block * kLanes, y = part * part_rows, last = std::min(s.height, y + part_rows);
      if (y >= last) continue;
      if (block != packed_block) pack_weight(weight + channel * taps, taps, filters.get());
      packed_block = block;
      const int64_t image = n * s.height * s.width * s.channels + channel;
      const PackedRows in = pack_rows(s, input + image, std::max<int64_t>(0, y - pad_y),
                                      std::min(s.height, last + pad_y), rows.get());
      convolve(s, in, filters.get(), bias ? bias + channel : nullptr, activation, y, last, output + image);
    }
  });
}

}  // namespace widefield
