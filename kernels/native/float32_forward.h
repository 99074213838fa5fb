// The convolution with products and sums in float32, one image row and one filter row at a time.
#pragma once

#include "simd_convolve.h"

namespace widefield {
namespace {

// Output rows y .. y + Rows - 1 of one channel block; Taps as in add_row.
template <class Kernel, int Rows, int Taps, class Element = typename Kernel::Element>
void convolve_rows(const DepthwiseShape& s, const RowRing& in, const float* weight, const Epilogue<Element>& epilogue,
                   int64_t y, Element* output) {
  const int64_t pad_y = s.kernel_height / 2, pad_x = s.kernel_width / 2, row_taps = s.kernel_width * kLanes;
  const Vector start = epilogue.start();
  const Everything all;
  for (int64_t x = 0; x < s.width; x += kColumns) {
    Vector acc[Rows][kColumns];
    unroll<Rows * kColumns>([&](auto i) { acc[i / kColumns][i % kColumns] = start; });
    const int64_t begin = first_tap(s, x), end = end_tap(s, x);
    // Rows - 1 input rows at either end serve only one output row. acc is indexed by constants, to stay in registers.
    const int64_t top = y - pad_y, bottom = top + s.kernel_height;
    if (Rows == 2 && top >= 0) add_row<Kernel, 1, Taps>(in.at(top, x - pad_x), {weight}, begin, end, all, acc);
    for (int64_t r = std::max<int64_t>(0, top + Rows - 1); r < std::min(s.height, bottom); ++r) {
      const float* filter = weight + (r - top) * row_taps;
      if constexpr (Rows == 1) {
        add_row<Kernel, 1, Taps>(in.at(r, x - pad_x), {filter}, begin, end, all, acc);
      } else {
        add_row<Kernel, 2, Taps>(in.at(r, x - pad_x), {filter, filter - row_taps}, begin, end, all, acc);
      }
    }
    if (Rows == 2 && bottom < s.height)
      add_row<Kernel, 1, Taps>(in.at(bottom, x - pad_x), {weight + (s.kernel_height - 1) * row_taps}, begin, end, all,
                               acc + Rows - 1);
    finish<Kernel>(s, acc, epilogue, s.width - x, output + (y * s.width + x) * s.channels);
  }
}

// Output row y, if every row of taps spans the image.
template <class Kernel, int Columns, class Element = typename Kernel::Element>
void convolve_whole_row(const DepthwiseShape& s, const RowRing& in, const float* weight,
                        const Epilogue<Element>& epilogue, int64_t y, Element* output) {
  const int64_t pad_y = s.kernel_height / 2, pad_x = s.kernel_width / 2, row_taps = s.kernel_width * kLanes;
  const Vector start = epilogue.start();
  Vector acc[1][Columns];
  unroll<Columns>([&](auto t) { acc[0][t] = start; });
  const int64_t top = std::max<int64_t>(0, y - pad_y), bottom = std::min(s.height, y + s.kernel_height - pad_y);
  for (int64_t r = top; r < bottom; ++r) {
    const float* taps = weight + (r - y + pad_y) * row_taps + pad_x * kLanes;
    add_whole_row<Kernel, 1>(in.at(r, 0), {taps}, Everything(), acc);
  }
  finish<Kernel>(s, acc, epilogue, Columns, output + y * s.width * s.channels);
}

// The convolution in which a row of the ring is a row of the image, and a packed row of the filter one of the filter.
template <class T>
struct Float32 : Fma {
  using Element = T;

  static void put(Element* p, Vector value) { store(p, value); }

  static int64_t filter_rows(const DepthwiseShape& s) { return s.kernel_height; }
  static int64_t ring_rows(const DepthwiseShape& s) { return std::min(s.height, s.kernel_height + 1); }
  // The ring's rows [first, end) that output row y needs.
  static int64_t first_ring_row(const DepthwiseShape& s, int64_t y) {
    return std::max<int64_t>(0, y - s.kernel_height / 2);
  }
  static int64_t end_ring_row(const DepthwiseShape& s, int64_t y) {
    return std::min(s.height, y + 1 + s.kernel_height / 2);
  }

  static void pack_filter(const DepthwiseShape& s, const Element* weight, float* packed, float*) {
    pack_weight(weight, s.kernel_height * s.kernel_width, packed);
  }

  static void pack_row(const DepthwiseShape& s, const Element* image, int64_t y, const RowRing* rings, int64_t blocks) {
    widefield::pack_row(s, image, y, rings, blocks);
  }

  template <int Taps>
  static RowFunctions<Element> row_functions() {
    return {&convolve_rows<Float32, 1, Taps>, &convolve_rows<Float32, 2, Taps>};
  }
  template <int Columns>
  static RowFunctions<Element> whole_row_functions() {
    return {&convolve_whole_row<Float32, Columns>, nullptr};
  }
};

}  // namespace
}  // namespace widefield
