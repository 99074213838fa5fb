// Shared by the CPU kernels: the sums of a tile over a filter row, their epilogue, and the loop over the images.
//
// Blocks of channels are computed one by one. A block's rows are copied to a zero-bordered ring that stays in the cache
// (pixels in channels_last are `channels` elements apart and would fall on the same cache sets), its filters to vectors
// of one tap of all its channels. Then a tile of two rows by kColumns is accumulated in registers; each input vector
// that is loaded serves both rows. If the filter is so wide that every row of taps spans the image (14 x 14 with 27
// taps), the tile is a whole row and no tap is wasted.
//
// Included after simd_avx2.h or simd_avx512.h, under a kernel's own `#pragma GCC target`, in an unnamed namespace: each
// kernel compiles it for its instructions.
#pragma once

#include "simd_blocks.h"

namespace widefield {
namespace {

constexpr int kWholeRow = 14;  // widest image whose rows are one tile
constexpr int64_t kStreamed = 2 << 20;  // bytes: an output beyond it leaves the L2 cache before the next layer reads it

// How a sum is stored. `stream`: past the caches, so that the line (16 floats) need not be read before it is written.
template <class Element>
struct Epilogue {
  const Element* bias;  // [channels] or null
  Activation activation;
  bool stream;

  Vector start() const { return bias ? load(bias) : zero(); }
};

struct Fma {
  static Vector multiply_add(Vector value, Vector filter, Vector sum) {
    return widefield::multiply_add(value, filter, sum);
  }
};

// The part of a loaded vector that an output row sees: all of it.
struct Everything {
  Vector operator()(int, Vector value) const { return value; }
};

// acc[i][t] += part(i, input[t + k]) * weight[i][k] over k in order, for one filter row per output row. Taps > 0 is the
// width of a narrow filter, with each input vector loaded once; for Taps = 0, k is in [begin, end).
template <class Kernel, int Rows, int Taps, class Part, int Columns>
[[gnu::always_inline]] inline void add_row(const float* input, const float* const (&weight)[Rows], int64_t begin,
                                           int64_t end, Part part, Vector (*acc)[Columns]) {
  if constexpr (Taps > 0) {
    Vector filter[Rows][Taps];
    unroll<Rows * Taps>([&](auto i) {
      constexpr int row = i / Taps, k = i % Taps;
      filter[row][k] = load_aligned(weight[row] + k * kLanes);
    });
    unroll<Columns + Taps - 1>([&](auto u) {
      const Vector value = load_aligned(input + u * kLanes);
      unroll<Columns * Rows>([&](auto i) {
        constexpr int t = i / Rows, row = i % Rows, k = u - t;
        if constexpr (k >= 0 && k < Taps)
          acc[row][t] = Kernel::multiply_add(part(row, value), filter[row][k], acc[row][t]);
      });
    });
    return;
  }
  for (int64_t k = begin; k < end; ++k) {
    Vector filter[Rows];
    unroll<Rows>([&](auto row) { filter[row] = load_aligned(weight[row] + k * kLanes); });
    unroll<Columns>([&](auto t) {
      const Vector value = load_aligned(input + (k + t) * kLanes);
      unroll<Rows>([&](auto row) { acc[row][t] = Kernel::multiply_add(part(row, value), filter[row], acc[row][t]); });
    });
  }
}

// The same if every row of taps spans the image: acc[i][t] += part(i, input[u]) * taps[i][u - t] over all columns u.
template <class Kernel, int Rows, int Columns, class Part>
[[gnu::always_inline]] inline void add_whole_row(const float* input, const float* const (&weight)[Rows], Part part,
                                                 Vector (&acc)[Rows][Columns]) {
  const float* taps[Rows];
  unroll<Rows>([&](auto row) { taps[row] = weight[row]; });
  for (int u = 0; u < Columns; ++u, input += kLanes) {
    const Vector value = load_aligned(input);
    unroll<Rows>([&](auto row) {
      const Vector seen = part(row, value);
      unroll<Columns>([&](auto t) {
        acc[row][t] = Kernel::multiply_add(seen, load_aligned(taps[row] - t * kLanes), acc[row][t]);
      });
      taps[row] += kLanes;
    });
  }
}

// Returns the polynomial of x with `coefficients`, the highest power first.
template <size_t N>
inline Vector polynomial(Vector x, const float (&coefficients)[N]) {
  Vector sum = zero();
  for (const float coefficient : coefficients) sum = multiply_add(sum, x, zero() + coefficient);
  return sum;
}

// erf(z) = z p(z z) / q(z z) for |z| <= 3.92, a least-squares fit, else 1 or -1: within 6 * 2^-24 in float32.
[[gnu::noinline]] Vector gelu(Vector value) {
  constexpr float p[] = {2.0500874e-6f, 2.8488287e-4f, 3.7656217e-3f, 5.2748741e-2f, 0.19040657f, 1.1283791f};
  constexpr float q[] = {3.8091723e-5f, 1.1625366e-3f, 1.4969227e-2f, 0.11410916f, 0.50207617f, 1.0f};
  const Vector z = value * 0.70710678118654752f, t = z * z, one = zero() + 1.0f;
  const Vector inner = z * polynomial(t, p) / polynomial(t, q);  // a NaN stays one
  const Vector erf = z > 3.92f ? one : z < -3.92f ? -one : inner;
  return 0.5f * value * (one + erf);
}

inline Vector activate(Vector value, Activation activation) {
  if (activation == Activation::relu) return relu(value);
  return activation == Activation::gelu ? gelu(value) : value;
}

// Stores acc [Rows][Columns] to the first `columns` pixels of Rows output rows, after the activation.
template <class Kernel, int Rows, int Columns>
[[gnu::always_inline]] inline void finish(const DepthwiseShape& s, const Vector (&acc)[Rows][Columns],
                                          const Epilogue<typename Kernel::Element>& epilogue, int64_t columns,
                                          typename Kernel::Element* pixel) {
  unroll<Rows * Columns>([&](auto i) {
    constexpr int row = i / Columns, t = i % Columns;
    if (t >= columns) return;
    const Vector value = activate(acc[row][t], epilogue.activation);
    typename Kernel::Element* const output = pixel + (row * s.width + t) * s.channels;
    if constexpr (std::is_same_v<typename Kernel::Element, float>) {
      if (epilogue.stream) return stream(output, value);
    }
    Kernel::put(output, value);
  });
}

// The taps [first_tap, end_tap) of a row that touch the image in any column of the tile at x.
inline int64_t first_tap(const DepthwiseShape& s, int64_t x) { return std::max<int64_t>(0, s.kernel_width / 2 - x - kBorder); }
inline int64_t end_tap(const DepthwiseShape& s, int64_t x) { return std::min(s.kernel_width, s.width - x + s.kernel_width / 2); }

// Computes output rows from y on, of one channel block.
template <class Element>
using RowsFunction = void (*)(const DepthwiseShape&, const RowRing&, const float* weight, const Epilogue<Element>&,
                              int64_t y, Element* output);

// The functions that compute one and two output rows at once.
template <class Element>
struct RowFunctions {
  RowsFunction<Element> one, two;
};

template <class Kernel, int Columns = kWholeRow>
RowFunctions<typename Kernel::Element> whole_rows(int64_t width) {
  if constexpr (Columns < 7) {
    return {};
  } else {
    return width == Columns ? Kernel::template whole_row_functions<Columns>() : whole_rows<Kernel, Columns - 1>(width);
  }
}

template <class Kernel>
RowFunctions<typename Kernel::Element> functions(const DepthwiseShape& s) {
  if (s.kernel_width >= 2 * s.width - 1)
    if (const auto whole = whole_rows<Kernel>(s.width); whole.one) return whole;
  if constexpr (kHoldsTaps) {
    if (s.kernel_width == 3) return Kernel::template row_functions<3>();
    if (s.kernel_width == 5) return Kernel::template row_functions<5>();
  }
  return Kernel::template row_functions<0>();
}

// Returns the number of channel blocks that a task computes: the most with which the busiest thread has at most a
// sixteenth more than its share of the work. parallel_for gives each thread one run of consecutive tasks.
inline int64_t choose_group(int64_t blocks, int64_t batch, int64_t threads) {
  int64_t group = std::min<int64_t>(kGroup, blocks);
  for (; group > 1; --group) {
    const int64_t tasks = (blocks + group - 1) / group * batch, busiest = (tasks + threads - 1) / threads * group;
    if (16 * busiest * threads <= 17 * blocks * batch) break;
  }
  return group;
}

template <class Kernel, class Element = typename Kernel::Element>
void convolve(const DepthwiseShape& s, const Element* input, const Element* weight, const Element* bias,
              Activation activation, Element* output, int threads, const ParallelFor& parallel_for) {
  const int64_t blocks = s.channels / kLanes, taps = s.kernel_height * s.kernel_width;
  const int64_t filter = Kernel::filter_rows(s) * s.kernel_width * kLanes;
  const int64_t group = choose_group(blocks, s.batch, threads), groups = (blocks + group - 1) / group;
  // Rows are split only if a thread would idle otherwise, since each part copies its border rows again.
  const int64_t tasks = groups * s.batch, wanted = tasks % threads == 0 ? 1 : (4 * threads + tasks - 1) / tasks;
  const int64_t parts = std::clamp<int64_t>(std::min(wanted, s.height / 8), 1, s.height);
  const int64_t part_rows = ((s.height + parts - 1) / parts + 1) / 2 * 2;
  const int64_t image_elements = s.height * s.width * s.channels;
  const bool stream = kLanes == 16 && s.batch * image_elements * static_cast<int64_t>(sizeof(Element)) > kStreamed &&
                      reinterpret_cast<uintptr_t>(output) % 64 == 0;
  const RowFunctions<Element> rows = functions<Kernel>(s);

  parallel_for(tasks * parts, [&](int64_t begin, int64_t end) {
    const RowRing ring(Kernel::ring_rows(s), s.width);
    float* const filters = scratch(group * (filter + ring.floats()) + taps * kLanes);
    float* const spare = filters + group * (filter + ring.floats());
    RowRing rings[kGroup] = {ring, ring, ring, ring};
    for (int64_t b = 0; b < group; ++b) rings[b].place(filters + group * filter + b * ring.floats());
    int64_t packed_group = -1;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t g = task / (s.batch * parts), n = task / parts % s.batch, part = task % parts;
      const int64_t first = g * group, count = std::min(group, blocks - first);
      if (g != packed_group)
        for (int64_t b = 0; b < count; ++b)
          Kernel::pack_filter(s, weight + (first + b) * taps * kLanes, &filters[b * filter], spare);
      packed_group = g;
      const int64_t image = n * image_elements + first * kLanes, last = std::min(s.height, (part + 1) * part_rows);
      int64_t y = part * part_rows, packed = Kernel::first_ring_row(s, y);
      while (y < last) {
        const bool two = rows.two && y + 2 <= last;
        const int64_t needed = Kernel::end_ring_row(s, y + two);
        for (; packed < needed; ++packed) Kernel::pack_row(s, input + image, packed, rings, count);
        for (int64_t b = 0; b < count; ++b) {
          const Epilogue<Element> epilogue{bias ? bias + (first + b) * kLanes : nullptr, activation, stream};
          (two ? rows.two : rows.one)(s, rings[b], &filters[b * filter], epilogue, y, output + image + b * kLanes);
        }
        y += 1 + two;
      }
    }
    if (stream) _mm_sfence();
  });
}

}  // namespace
}  // namespace widefield
