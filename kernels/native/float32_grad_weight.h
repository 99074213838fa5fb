// The filter's gradient, a convolution too: of the input, with the output's gradient in the filter's place.
//
//   grad_weight[ky][kx] = sum over n, y, x of grad_output[n][y][x] * input[n][y + ky - pad][x + kx - pad]
//
// For a block of channels, a band of input rows, with zero columns on either side, and the output rows that see it are
// kept in the cache. A tile of taps is accumulated in registers over the band; rows outside the image are skipped. A
// task is a block and a part of the batch. The parts' sums are added in a fixed order: the bits do not depend on the
// threads.
#pragma once

#include "simd_convolve.h"

namespace widefield {
namespace {

// Three levels of sums, since long sums round more: some 80 terms (at least a row's) in registers, eight of those,
// images.
constexpr int64_t kTerms = 80, kBands = 8;

int64_t band_rows(const DepthwiseShape& s) { return std::clamp<int64_t>(kTerms / s.width, 1, s.height); }

constexpr int tile_rows(int columns) { return columns <= kSquareTaps ? columns : 2; }

// sums[ky + i][kx + t] += the terms of input rows [top, bottom), i < Rows, t < Columns; taps beyond the filter's width
// are skipped.
template <int Rows, int Columns>
void add_tile(const DepthwiseShape& s, const RowRing& input, const RowRing& grad, int64_t top, int64_t bottom,
              int64_t ky, int64_t kx, float* sums) {
  const int64_t pad_y = s.kernel_height / 2, left = kx - s.kernel_width / 2;
  // Output columns [begin, end) see the image through any tap of the tile.
  const int64_t begin = std::max<int64_t>(0, 1 - Columns - left), end = std::min(s.width, s.width - left);
  const Everything all;
  Vector acc[Rows][Columns];
  unroll<Rows * Columns>([&](auto i) { acc[i / Columns][i % Columns] = zero(); });
  const int64_t first = std::max(top, ky - pad_y), last = std::min(bottom, s.height + ky + Rows - 1 - pad_y);
  for (int64_t r = first; r < last; ++r) {
    const int64_t y = r + pad_y - ky;  // the output row that sees input row r through tap ky; through ky + i it is y - i
    const float* const in = input.at(r, left);
    if (y >= Rows - 1 && y < s.height) {
      const float* rows[Rows];
      unroll<Rows>([&](auto i) { rows[i] = grad.at(y - i, 0); });
      add_row<Fma, Rows, 0>(in, rows, begin, end, all, acc);
    } else if constexpr (Rows > 1) {
      unroll<Rows>([&](auto i) {
        if (y >= i && y - i < s.height) add_row<Fma, 1, 0>(in, {grad.at(y - i, 0)}, begin, end, all, acc + i);
      });
    }
  }
  unroll<Rows * Columns>([&](auto i) {
    constexpr int row = i / Columns, t = i % Columns;
    if (kx + t >= s.kernel_width) return;
    float* const sum = sums + ((ky + row) * s.kernel_width + kx + t) * kLanes;
    store_aligned(sum, add(load_aligned(sum), acc[row][t]));
  });
}

using AddTile = void (*)(const DepthwiseShape&, const RowRing& input, const RowRing& grad, int64_t top, int64_t bottom,
                         int64_t ky, int64_t kx, float* sums);

struct Tile {
  int columns, rows;
  AddTile add, add_one_row;
};

template <int Columns = kTapColumns>
Tile tile_of(int64_t columns) {
  if constexpr (Columns == 1) {
    return {1, 1, &add_tile<1, 1>, &add_tile<1, 1>};
  } else {
    constexpr int rows = tile_rows(Columns);
    return columns == Columns ? Tile{Columns, rows, &add_tile<rows, Columns>, &add_tile<1, Columns>}
                              : tile_of<Columns - 1>(columns);
  }
}

// Returns the tile with the width that makes the tiles of a filter row equal.
Tile choose_tile(const DepthwiseShape& s) {
  const int64_t tiles = (s.kernel_width + kTapColumns - 1) / kTapColumns;
  return tile_of<>((s.kernel_width + tiles - 1) / tiles);
}

void add_band(const DepthwiseShape& s, const Tile& tile, const RowRing& input, const RowRing& grad, int64_t top,
              int64_t bottom, float* sums) {
  for (int64_t ky = 0; ky < s.kernel_height;) {
    const bool whole = ky + tile.rows <= s.kernel_height;
    const AddTile add = whole ? tile.add : tile.add_one_row;
    for (int64_t kx = 0; kx < s.kernel_width; kx += tile.columns) add(s, input, grad, top, bottom, ky, kx, sums);
    ky += whole ? tile.rows : 1;
  }
}

// sums [taps][lanes] += the terms of one image. `group` is scratch memory of the same size; `input` and `grad` hold a
// band and the output rows that see it.
template <class Element>
void add_image(const DepthwiseShape& s, const Tile& tile, const Element* image, const Element* grad_image,
               const RowRing& input, const RowRing& grad, float* group, float* sums) {
  const int64_t size = s.kernel_height * s.kernel_width * kLanes, band = band_rows(s);
  int64_t packed = 0;
  for (int64_t start = 0; start < s.height; start += kBands * band) {
    std::memset(group, 0, size * sizeof(float));
    for (int64_t top = start; top < std::min(s.height, start + kBands * band); top += band) {
      const int64_t bottom = std::min(s.height, top + band), seen = std::min(s.height, bottom + s.kernel_height / 2);
      for (int64_t y = top; y < bottom; ++y) pack_row(s, image, y, &input, 1);
      for (; packed < seen; ++packed) pack_row(s, grad_image, packed, &grad, 1);
      add_band(s, tile, input, grad, top, bottom, group);
    }
    for (int64_t i = 0; i < size; i += kLanes)
      store_aligned(sums + i, add(load_aligned(sums + i), load_aligned(group + i)));
  }
}

// [parts][taps][lanes] -> their sum, [lanes][taps]
template <class Element>
void reduce_parts(float* sums, int64_t parts, int64_t taps, Element* output) {
  for (int64_t tap = 0; tap < taps; tap += kLanes) {
    const int64_t count = std::min<int64_t>(kLanes, taps - tap);
    Vector rows[kLanes] = {};
    for (int64_t i = 0; i < count; ++i)
      for (int64_t part = 0; part < parts; ++part)
        rows[i] = add(rows[i], load_aligned(sums + (part * taps + tap + i) * kLanes));
    transpose(rows);
    for (int channel = 0; channel < kLanes; ++channel) store_part(output + channel * taps + tap, rows[channel], count);
  }
}

template <class Element>
void grad_weight(const DepthwiseShape& s, const Element* grad, const Element* input, float* all_sums, Element* output,
                 const ParallelFor& parallel_for) {
  const int64_t blocks = s.channels / kLanes, parts = grad_weight_parts(s), taps = s.kernel_height * s.kernel_width;
  const int64_t image_elements = s.height * s.width * s.channels;
  const Tile tile = choose_tile(s);

  parallel_for(blocks * parts, [&](int64_t begin, int64_t end) {
    RowRing in(band_rows(s), s.width, tile.columns - 1);
    RowRing out(std::min(s.height, band_rows(s) + s.kernel_height - 1), s.width, 0);
    float* const group = scratch(taps * kLanes + in.floats() + out.floats());
    in.place(group + taps * kLanes);
    out.place(group + taps * kLanes + in.floats());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / parts, part = task % parts;
      float* const sums = all_sums + task * taps * kLanes;
      std::memset(sums, 0, taps * kLanes * sizeof(float));
      for (int64_t n = s.batch * part / parts; n < s.batch * (part + 1) / parts; ++n) {
        const int64_t image = n * image_elements + block * kLanes;
        add_image(s, tile, input + image, grad + image, in, out, group, sums);
      }
    }
  });
  parallel_for(blocks, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block)
      reduce_parts(all_sums + block * parts * taps * kLanes, parts, taps, output + block * taps * kLanes);
  });
}

}  // namespace
}  // namespace widefield
