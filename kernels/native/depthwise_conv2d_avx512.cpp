// A 16-channel block at a time: its rows are copied to a zero-bordered ring that stays in the cache (the pixels of
// channels_last lie `channels` floats apart and would fall on the same cache sets), its filters to [Kh*Kw][16]. Then a
// tile of two rows by seven columns is accumulated in 14 registers; each input vector that is loaded serves both rows.
// A filter of 3 or 5 columns is held in registers, a row at a time; with 7 they spill, and it takes twice the time.
// Where it is so wide that every tap row spans the image (14 x 14 with 27 taps), the tile is one whole row and no tap
// is wasted.
#include "depthwise_conv2d_avx512.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "avx512_blocks.h"

#pragma GCC push_options
#pragma GCC target("avx512f")

namespace widefield {
namespace {

constexpr int kWholeRow = 14;  // widest image whose rows are one tile
constexpr int64_t kStreamed = 2 << 20;  // bytes: an output beyond it leaves the L2 cache before the next layer reads it

constexpr int64_t kFewTaps = 25, kManyElements = 2'000'000;  // oneDNN's share in bfloat16

int64_t taps(const DepthwiseShape& s) { return s.kernel_height * s.kernel_width; }
int64_t elements(const DepthwiseShape& s) { return s.batch * s.height * s.width * s.channels; }

// What becomes of a sum; `stream`: past the caches, which saves reading the line that is written (16 floats are one).
template <class Element>
struct Epilogue {
  const Element* bias;  // [channels] or null
  Activation activation;
  bool stream;

  __m512 start() const { return bias ? load(bias) : _mm512_setzero_ps(); }
};

// acc[i][t] += input[t + k] * weight[i][k] over k in order, for one filter row per output row: for all of its `Taps`
// columns where it is narrow, each input vector loaded once; else (Taps = 0) for k in [begin, end).
template <int Rows, int Taps>
[[gnu::always_inline]] inline void add_row(const float* input, const float* const (&weight)[Rows], int64_t begin,
                                           int64_t end, __m512 (*acc)[kColumns]) {
  if constexpr (Taps > 0) {
    __m512 filter[Rows][Taps];
    unroll<Rows * Taps>([&](auto i) {
      constexpr int row = i / Taps, k = i % Taps;
      filter[row][k] = _mm512_load_ps(weight[row] + k * kLanes);
    });
    unroll<kColumns + Taps - 1>([&](auto u) {
      const __m512 value = _mm512_load_ps(input + u * kLanes);
      unroll<kColumns * Rows>([&](auto i) {
        constexpr int t = i / Rows, row = i % Rows, k = u - t;
        if constexpr (k >= 0 && k < Taps) acc[row][t] = _mm512_fmadd_ps(value, filter[row][k], acc[row][t]);
      });
    });
    return;
  }
  for (int64_t k = begin; k < end; ++k) {
    __m512 filter[Rows];
    unroll<Rows>([&](auto row) { filter[row] = _mm512_load_ps(weight[row] + k * kLanes); });
    unroll<kColumns>([&](auto t) {
      const __m512 value = _mm512_load_ps(input + (k + t) * kLanes);
      unroll<Rows>([&](auto row) { acc[row][t] = _mm512_fmadd_ps(value, filter[row], acc[row][t]); });
    });
  }
}

[[gnu::noinline]] __m512 gelu(__m512 value) {
  alignas(64) float lanes[kLanes];
  _mm512_store_ps(lanes, value);
  for (float& x : lanes) x = 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
  return _mm512_load_ps(lanes);
}

inline __m512 activate(__m512 value, Activation activation) {
  if (activation == Activation::relu) return _mm512_max_ps(_mm512_setzero_ps(), value);  // this order keeps a NaN
  return activation == Activation::gelu ? gelu(value) : value;
}

template <class Element>
inline void finish(Element* output, __m512 value, const Epilogue<Element>& epilogue) {
  value = activate(value, epilogue.activation);
  if constexpr (std::is_same_v<Element, float>) {
    if (epilogue.stream) return _mm512_stream_ps(output, value);
  }
  store(output, value);
}

// Output rows y .. y + Rows - 1 of one channel block; Taps as in add_row.
template <class Element, int Rows, int Taps>
void convolve_rows(const DepthwiseShape& s, const RowRing& in, const float* weight, const Epilogue<Element>& epilogue,
                   int64_t y, Element* output) {
  const int64_t pad_y = s.kernel_height / 2, pad_x = s.kernel_width / 2, row_taps = s.kernel_width * kLanes;
  const __m512 start = epilogue.start();
  for (int64_t x = 0; x < s.width; x += kColumns) {
    __m512 acc[Rows][kColumns];
    unroll<Rows * kColumns>([&](auto i) { acc[i / kColumns][i % kColumns] = start; });
    const int64_t begin = std::max<int64_t>(0, pad_x - x - kBorder);  // taps that touch the image in any column
    const int64_t end = std::min(s.kernel_width, s.width - x + pad_x);
    // Rows - 1 input rows at either end serve one output row alone; acc is indexed by constants, to stay in registers.
    const int64_t top = y - pad_y, bottom = top + s.kernel_height;
    if (Rows == 2 && top >= 0) add_row<1, Taps>(in.at(top, x - pad_x), {weight}, begin, end, acc);
    for (int64_t r = std::max<int64_t>(0, top + Rows - 1); r < std::min(s.height, bottom); ++r) {
      const float* filter = weight + (r - top) * row_taps;
      if constexpr (Rows == 1) {
        add_row<1, Taps>(in.at(r, x - pad_x), {filter}, begin, end, acc);
      } else {
        add_row<2, Taps>(in.at(r, x - pad_x), {filter, filter - row_taps}, begin, end, acc);
      }
    }
    if (Rows == 2 && bottom < s.height)
      add_row<1, Taps>(in.at(bottom, x - pad_x), {weight + (s.kernel_height - 1) * row_taps}, begin, end,
                       acc + Rows - 1);
    const int64_t columns = s.width - x;
    Element* pixel = output + (y * s.width + x) * s.channels;
    unroll<Rows * kColumns>([&](auto i) {
      constexpr int row = i / kColumns, t = i % kColumns;
      if (t < columns) finish(pixel + (row * s.width + t) * s.channels, acc[row][t], epilogue);
    });
  }
}

// Output row y where every tap row spans the image.
template <class Element, int Columns>
void convolve_whole_row(const DepthwiseShape& s, const RowRing& in, const float* weight,
                        const Epilogue<Element>& epilogue, int64_t y, Element* output) {
  const int64_t pad_y = s.kernel_height / 2, pad_x = s.kernel_width / 2, row_taps = s.kernel_width * kLanes;
  const __m512 start = epilogue.start();
  __m512 acc[Columns];
  unroll<Columns>([&](auto t) { acc[t] = start; });
  const int64_t top = std::max<int64_t>(0, y - pad_y), bottom = std::min(s.height, y + s.kernel_height - pad_y);
  for (int64_t r = top; r < bottom; ++r) {
    const float* input = in.at(r, 0);
    const float* taps = weight + (r - y + pad_y) * row_taps + pad_x * kLanes;
    for (int u = 0; u < Columns; ++u, input += kLanes, taps += kLanes) {  // acc[t] += input[u] * taps[u - t]
      const __m512 value = _mm512_load_ps(input);
      unroll<Columns>([&](auto t) { acc[t] = _mm512_fmadd_ps(value, _mm512_load_ps(taps - t * kLanes), acc[t]); });
    }
  }
  Element* pixel = output + y * s.width * s.channels;
  unroll<Columns>([&](auto t) { finish(pixel + t * s.channels, acc[t], epilogue); });
}

template <class Element>
using RowsFunction = void (*)(const DepthwiseShape&, const RowRing&, const float*, const Epilogue<Element>&, int64_t,
                              Element*);

// By how many output rows are made at once, 1 and 2.
template <class Element>
struct RowFunctions {
  RowsFunction<Element> one, two;
};

template <class Element, int Columns = kWholeRow>
RowFunctions<Element> whole_rows(int64_t width) {
  if constexpr (Columns < 7) {
    return {};
  } else {
    return width == Columns ? RowFunctions<Element>{&convolve_whole_row<Element, Columns>}
                            : whole_rows<Element, Columns - 1>(width);
  }
}

template <class Element, int Taps>
constexpr RowFunctions<Element> kRowFunctions = {&convolve_rows<Element, 1, Taps>, &convolve_rows<Element, 2, Taps>};

template <class Element>
RowFunctions<Element> functions(const DepthwiseShape& s) {
  if (s.kernel_width >= 2 * s.width - 1)
    if (const auto whole = whole_rows<Element>(s.width); whole.one) return whole;
  switch (s.kernel_width) {
    case 3: return kRowFunctions<Element, 3>;
    case 5: return kRowFunctions<Element, 5>;
    default: return kRowFunctions<Element, 0>;
  }
}

// Channel blocks that are taken together: as many as leave the threads with the same work, to a sixteenth. parallel_for
// gives each thread one run of neighbouring tasks.
int64_t choose_group(int64_t blocks, int64_t batch, int64_t threads) {
  int64_t group = std::min<int64_t>(kGroup, blocks);
  for (; group > 1; --group) {
    const int64_t tasks = (blocks + group - 1) / group * batch, busiest = (tasks + threads - 1) / threads * group;
    if (16 * busiest * threads <= 17 * blocks * batch) break;
  }
  return group;
}

}  // namespace

template <class Element>
void depthwise_conv2d_avx512(const DepthwiseShape& s, const Element* input, const Element* weight, const Element* bias,
                             Activation activation, Element* output, int threads, const ParallelFor& parallel_for) {
  const int64_t blocks = s.channels / kLanes, filter = s.kernel_height * s.kernel_width * kLanes;
  const int64_t group = choose_group(blocks, s.batch, threads), groups = (blocks + group - 1) / group;
  // Rows are split only where a thread would idle otherwise: each part copies its border rows anew.
  const int64_t tasks = groups * s.batch, wanted = tasks % threads == 0 ? 1 : (4 * threads + tasks - 1) / tasks;
  const int64_t parts = std::clamp<int64_t>(std::min(wanted, s.height / 8), 1, s.height);
  const int64_t part_rows = (s.height + parts - 1) / parts;
  const int64_t pad_y = s.kernel_height / 2, image_elements = s.height * s.width * s.channels;
  const bool stream = s.batch * image_elements * static_cast<int64_t>(sizeof(Element)) > kStreamed &&
                      reinterpret_cast<uintptr_t>(output) % 64 == 0;
  const RowFunctions<Element> convolve = functions<Element>(s);

  parallel_for(tasks * parts, [&](int64_t begin, int64_t end) {
    const RowRing ring(std::min(s.height, 2 + 2 * pad_y), s.width);
    float* const filters = scratch(group * (filter + ring.floats()));
    RowRing rings[kGroup] = {ring, ring, ring, ring};
    for (int64_t b = 0; b < group; ++b) rings[b].place(filters + group * filter + b * ring.floats());
    int64_t packed_group = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t g = task / (s.batch * parts), n = task / parts % s.batch, part = task % parts;
      const int64_t first = g * group, count = std::min(group, blocks - first);
      if (g != packed_group)
        for (int64_t b = 0; b < count; ++b)
          pack_weight(weight + (first + b) * filter, filter / kLanes, &filters[b * filter]);
      packed_group = g;
      const int64_t image = n * image_elements + first * kLanes, last = std::min(s.height, (part + 1) * part_rows);
      int64_t y = part * part_rows, packed = std::max<int64_t>(0, y - pad_y);
      while (y < last) {
        const bool two = convolve.two && y + 2 <= last;
        const int64_t needed = std::min(s.height, y + 1 + two + pad_y);
        pack_rows(s, input + image, packed, needed, rings, count);
        packed = needed;
        for (int64_t b = 0; b < count; ++b) {
          const Epilogue<Element> epilogue{bias ? bias + (first + b) * kLanes : nullptr, activation, stream};
          const auto rows = two ? convolve.two : convolve.one;
          rows(s, rings[b], &filters[b * filter], epilogue, y, output + image + b * kLanes);
        }
        y += 1 + two;
      }
    }
    if (stream) _mm_sfence();
  });
}

template void depthwise_conv2d_avx512(const DepthwiseShape&, const float*, const float*, const float*, Activation,
                                      float*, int, const ParallelFor&);
template void depthwise_conv2d_avx512(const DepthwiseShape&, const Half*, const Half*, const Half*, Activation, Half*,
                                      int, const ParallelFor&);
template void depthwise_conv2d_avx512(const DepthwiseShape&, const BFloat16*, const BFloat16*, const BFloat16*,
                                      Activation, BFloat16*, int, const ParallelFor&);

}  // namespace widefield

#pragma GCC pop_options

bool widefield::depthwise_conv2d_avx512_suits(const DepthwiseShape& s) {
  static const bool has_avx512 = __builtin_cpu_supports("avx512f");
  return has_avx512 && s.channels % kLanes == 0 && taps(s) >= 9 && elements(s) > 0;
}

bool widefield::depthwise_conv2d_onednn_suits(const DepthwiseShape& s) {
  static const bool has_bfloat16 = __builtin_cpu_supports("avx512bf16");
  return has_bfloat16 && taps(s) <= kFewTaps && elements(s) >= kManyElements;
}
