// A 16-channel block at a time: its input is copied to a zero-bordered buffer that stays in the cache (channels_last
// rows lie `channels` floats apart and would fall on the same cache sets), its filters to [Kh*Kw][16]. Then a tile of
// two rows by seven columns is accumulated in 14 registers; each input vector that is loaded serves both rows. Where the
// filter is so wide that every tap row spans the image (14 x 14 with 27 taps), the tile is one whole row and no tap is wasted.
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
constexpr int kWholeRow = 14;  // widest image whose rows are one tile
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

// rows[i][j] -> rows[j][i]
AVX512 void transpose(__m512 (&rows)[kLanes]) {
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
AVX512 void pack_weight(const float* weight, int64_t taps, float* packed) {
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

// Output row y where every tap row spans the image.
template <int Columns>
AVX512 void convolve_whole_row(const DepthwiseShape& s, const PackedRows& in, const float* weight, const float* bias,
                                Activation activation, int64_t y, float* output) {
  const int64_t pad_y = s.kernel_height / 2, pad_x = s.kernel_width / 2, row_taps = s.kernel_width * kLanes;
  const __m512 start = bias ? _mm512_loadu_ps(bias) : _mm512_setzero_ps();
  __m512 acc[Columns];
  for (auto& value : acc) value = start;
  const int64_t top = std::max<int64_t>(0, y - pad_y), bottom = std::min(s.height, y + s.kernel_height - pad_y);
  for (int64_t r = top; r < bottom; ++r) {
    const float* input = in.data + ((r - in.first) * in.pitch + kBorder) * kLanes;
    const float* taps = weight + (r - y + pad_y) * row_taps + pad_x * kLanes;
    for (int u = 0; u < Columns; ++u, input += kLanes, taps += kLanes) {  // acc[t] += input[u] * taps[u - t]
      const __m512 value = _mm512_load_ps(input);
#pragma GCC unroll 14
      for (int t = 0; t < Columns; ++t) acc[t] = _mm512_fmadd_ps(value, _mm512_load_ps(taps - t * kLanes), acc[t]);
    }
  }
  for (int64_t t = 0; t < Columns; ++t)
    _mm512_storeu_ps(output + (y * s.width + t) * s.channels, activate(acc[t], activation));
}

using RowsFunction = void (*)(const DepthwiseShape&, const PackedRows&, const float*, const float*, Activation, int64_t,
                              float*);

template <int Columns = kWholeRow>
RowsFunction whole_rows(const DepthwiseShape& s) {
  if constexpr (Columns < 7) {
    return nullptr;
  } else {
    if (s.width != Columns) return whole_rows<Columns - 1>(s);
    return s.kernel_width >= 2 * s.width - 1 ? &convolve_whole_row<Columns> : nullptr;
  }
}

// Output rows [y, end) of one channel block of one image.
void convolve(const DepthwiseShape& s, const PackedRows& in, const float* weight, const float* bias,
              Activation activation, int64_t y, int64_t end, float* output) {
  if (const RowsFunction whole = whole_rows(s)) {
    for (; y < end; ++y) whole(s, in, weight, bias, activation, y, output);
    return;
  }
  for (; y + 2 <= end; y += 2) convolve_rows<2>(s, in, weight, bias, activation, y, output);
  if (y < end) convolve_rows<1>(s, in, weight, bias, activation, y, output);
}

}  // namespace

bool depthwise_conv2d_avx512_suits(const DepthwiseShape& s) {
  static const bool has_avx512 = __builtin_cpu_supports("avx512f");
  const int64_t taps = s.kernel_height * s.kernel_width;
  return has_avx512 && s.channels % kLanes == 0 && taps >= 81 && s.batch * s.height * s.width * s.channels > 0;
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
