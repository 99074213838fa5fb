// The convolution with vdpbf16ps, which adds two bfloat16 products to a float32 sum in the time of one: here the
// products of a pixel and of the pixel below it. A row of the ring is a pair of image rows, the upper one in the lower
// half of each 32-bit lane. Pair p holds rows 2 p - pad and 2 p - pad + 1, so output rows 2 i and 2 i + 1 need the same
// pairs, each with its own packed filter:
//
//   pair          i          i + 1      ...   i + (Kh - 1) / 2
//   row 2 i       (w0, w1)   (w2, w3)   ...   (w[Kh - 1], -)
//   row 2 i + 1   (-, w0)    (w1, w2)   ...   (w[Kh - 2], w[Kh - 1])
//
// Pixels under a missing tap (-) are masked, since a NaN there must not reach that output row. A row outside the image
// is multiplied as zeros if the other row of its pair is inside. Numbers below 2^-126 count as zero.

#include "depthwise_conv2d_cpu.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bf16")

// clang-format off
#include "simd_avx512.h"
#include "simd_convolve.h"
// clang-format on

namespace widefield {
namespace {

constexpr int kTwoRows = 10;  // widest image of which a tile holds two whole rows: wider ones spill sums
constexpr uint32_t kUpper = 0x0000ffff, kLower = 0xffff0000;  // halves of a lane, named by their rows in the image

// The parts of a pair that each of two output rows sees.
struct Halves {
  __m512i of[2];

  __m512 operator()(int row, __m512 value) const {
    return _mm512_castsi512_ps(_mm512_and_epi32(_mm512_castps_si512(value), of[row]));
  }
};

struct Pairs {
  int64_t first, begin, end;  // output row y's first pair, and its pairs [begin, end) that touch the image

  Pairs(const DepthwiseShape& s, int64_t y) : first(y / 2) {
    const int64_t pad = s.kernel_height / 2;
    begin = std::max(first, pad / 2);
    end = std::min(first + count(s), (s.height + pad + 1) / 2);
  }
  static int64_t count(const DepthwiseShape& s) { return s.kernel_height / 2 + 1; }
};

bool outermost(const DepthwiseShape& s, int64_t pair) { return pair == 0 || pair == Pairs::count(s) - 1; }

// Returns the masks for a pair, counted from the first one.
Halves halves(const DepthwiseShape& s, int64_t pair) {
  const uint32_t upper_row = pair == Pairs::count(s) - 1 ? kUpper : ~0u, lower_row = pair == 0 ? kLower : ~0u;
  return {{_mm512_set1_epi32(static_cast<int>(upper_row)), _mm512_set1_epi32(static_cast<int>(lower_row))}};
}

// Output rows y .. y + Rows - 1 of one channel block, y even; Taps as in add_row.
template <class Kernel, int Rows, int Taps>
void convolve_rows(const DepthwiseShape& s, const RowRing& in, const float* weight,
                   const Epilogue<BFloat16>& epilogue, int64_t y, BFloat16* output) {
  const int64_t pad_x = s.kernel_width / 2, row_taps = s.kernel_width * kLanes, filter = Pairs::count(s) * row_taps;
  const __m512 start = epilogue.start();
  const Pairs pairs(s, y);
  for (int64_t x = 0; x < s.width; x += kColumns) {
    __m512 acc[Rows][kColumns];
    unroll<Rows * kColumns>([&](auto i) { acc[i / kColumns][i % kColumns] = start; });
    const int64_t begin = first_tap(s, x), end = end_tap(s, x);
    for (int64_t p = pairs.begin; p < pairs.end; ++p) {
      const float *input = in.at(p, x - pad_x), *upper = weight + (p - pairs.first) * row_taps;
      const float* filters[Rows];
      unroll<Rows>([&](auto row) { filters[row] = upper + row * filter; });
      if (outermost(s, p - pairs.first)) {
        add_row<Kernel, Rows, Taps>(input, filters, begin, end, halves(s, p - pairs.first), acc);
      } else {
        add_row<Kernel, Rows, Taps>(input, filters, begin, end, Everything(), acc);
      }
    }
    finish<Kernel>(s, acc, epilogue, s.width - x, output + (y * s.width + x) * s.channels);
  }
}

// The same if every row of taps spans the image.
template <class Kernel, int Rows, int Columns>
void convolve_whole_rows(const DepthwiseShape& s, const RowRing& in, const float* weight,
                         const Epilogue<BFloat16>& epilogue, int64_t y, BFloat16* output) {
  const int64_t pad_x = s.kernel_width / 2, row_taps = s.kernel_width * kLanes, filter = Pairs::count(s) * row_taps;
  const __m512 start = epilogue.start();
  const Pairs pairs(s, y);
  __m512 acc[Rows][Columns];
  unroll<Rows * Columns>([&](auto i) { acc[i / Columns][i % Columns] = start; });
  for (int64_t p = pairs.begin; p < pairs.end; ++p) {
    const float* first = weight + y % 2 * filter + (p - pairs.first) * row_taps + pad_x * kLanes;
    const float* filters[Rows];
    unroll<Rows>([&](auto row) { filters[row] = first + row * filter; });
    Halves seen = halves(s, p - pairs.first);
    if (Rows == 1 && y % 2) seen.of[0] = seen.of[1];
    add_whole_row<Kernel, Rows>(in.at(p, 0), filters, seen, acc);
  }
  finish<Kernel>(s, acc, epilogue, Columns, output + y * s.width * s.channels);
}

inline __m512i widen(const BFloat16* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}

struct BFloat16Pairs {
  using Element = BFloat16;

  static __m512 multiply_add(__m512 value, __m512 filter, __m512 sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)value, (__m512bh)filter);
  }
  static void put(BFloat16* p, __m512 value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(value));
  }

  static int64_t filter_rows(const DepthwiseShape& s) { return 2 * Pairs::count(s); }
  static int64_t ring_rows(const DepthwiseShape& s) { return std::min(Pairs::count(s), (s.height + 1) / 2 + 1); }
  // The ring's rows [first, end) that output row y needs.
  static int64_t first_ring_row(const DepthwiseShape& s, int64_t y) { return Pairs(s, y).begin; }
  static int64_t end_ring_row(const DepthwiseShape& s, int64_t y) { return Pairs(s, y).end; }

  // [16][Kh][Kw] -> the upper and the lower output row's filter, [pairs][Kw][16] each; `rows` is scratch [Kh][Kw][16].
  static void pack_filter(const DepthwiseShape& s, const BFloat16* weight, float* packed, float* rows) {
    const int64_t row_taps = s.kernel_width * kLanes;
    pack_weight(weight, s.kernel_height * s.kernel_width, rows);
    const auto bits = [&](int64_t row, int64_t at) {  // in the upper half of a float32's lanes
      const bool none = row < 0 || row >= s.kernel_height;
      return none ? _mm512_setzero_si512() : _mm512_load_si512(rows + row * row_taps + at);
    };
    for (const int64_t skipped : {0, 1})
      for (int64_t p = 0; p < Pairs::count(s); ++p)
        for (int64_t at = 0; at < row_taps; at += kLanes, packed += kLanes) {
          const int64_t row = 2 * p - skipped;
          _mm512_store_si512(packed, _mm512_or_epi32(_mm512_srli_epi32(bits(row, at), 16), bits(row + 1, at)));
        }
  }

  // Copies pair p of one channel block to each ring.
  static void pack_row(const DepthwiseShape& s, const BFloat16* image, int64_t p, const RowRing* rings,
                       int64_t blocks) {
    const int64_t upper = 2 * p - s.kernel_height / 2, row_elements = s.width * s.channels;
    const BFloat16* const above = upper >= 0 ? image + upper * row_elements : nullptr;
    const BFloat16* const below = upper + 1 < s.height ? image + (upper + 1) * row_elements : nullptr;
    float* rows[kGroup];
    for (int64_t b = 0; b < blocks; ++b) rows[b] = rings[b].at(p, 0);
    for (int64_t x = 0; x < s.width; ++x)
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t at = x * s.channels + b * kLanes;
        const __m512i high = below ? _mm512_slli_epi32(widen(below + at), 16) : _mm512_setzero_si512();
        const __m512i low = above ? widen(above + at) : _mm512_setzero_si512();
        _mm512_store_si512(rows[b] + x * kLanes, _mm512_or_epi32(low, high));
      }
  }

  template <int Taps>
  static RowFunctions<BFloat16> row_functions() {
    return {&convolve_rows<BFloat16Pairs, 1, Taps>, &convolve_rows<BFloat16Pairs, 2, Taps>};
  }
  template <int Columns>
  static RowFunctions<BFloat16> whole_row_functions() {
    if constexpr (Columns > kTwoRows) {
      return {&convolve_whole_rows<BFloat16Pairs, 1, Columns>, nullptr};
    } else {
      return {&convolve_whole_rows<BFloat16Pairs, 1, Columns>, &convolve_whole_rows<BFloat16Pairs, 2, Columns>};
    }
  }
};

}  // namespace

const decltype(CpuKernels<BFloat16>::forward) avx512_bf16_forward = &convolve<BFloat16Pairs>;

}  // namespace widefield

#pragma GCC pop_options
