// Computes part of Pillow's resize of an RGB image, bit for bit: the same filters in the same fixed-point format, first
// along rows, then along columns, with 8-bit values in between (libImaging/Resample.c).
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#define FASTEST __attribute__((target_clones("arch=x86-64-v3", "default")))
#else
#define FASTEST
#endif

namespace {

constexpr int kChannels = 4;  // R, G, B and an unused one
constexpr int kPoint = 22;    // fractional bits; the others: 8 for the value, 2 for overflow of the sum and the sign
constexpr int32_t kHalf = 1 << (kPoint - 1);

double bilinear(double x) { return std::max(0.0, 1.0 - std::fabs(x)); }

// Keys' cubic convolution with a = -1/2.
double bicubic(double x) {
  x = std::fabs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * -0.5;
  return 0;
}

struct Filter {
  double (*weight)(double);
  double support;
};

constexpr Filter kFilters[] = {{bilinear, 1}, {bicubic, 2}};  // in the order of `resize_part`

// The input pixels, and their weights, of one output position along an axis.
struct Taps {
  int first, count;
  const int32_t* weights;
};

class Axis {
 public:
  // Output positions [start, stop) of `size`, to which input pixels [begin, end) of `length` are resized. Each weight
  // is repeated `copies` times, and one more after the last may be read.
  Axis(const Filter& filter, int length, float begin, float end, int size, int start, int stop, int copies) {
    const double scale = static_cast<double>(end - begin) / size;
    const double stretch = std::max(scale, 1.0), support = filter.support * stretch;
    const size_t most = static_cast<size_t>(std::ceil(support)) * 2 + 2;
    std::vector<double> exact(most);
    weights_.resize(most * copies * (stop - start));
    int32_t* weights = weights_.data();
    for (int place = start; place < stop; ++place, weights += most * copies) {
      const double centre = begin + (place + 0.5) * scale;
      const int first = std::max(0, static_cast<int>(centre - support + 0.5));
      const int count = std::min(length, static_cast<int>(centre + support + 0.5)) - first;
      double sum = 0;
      for (int t = 0; t < count; ++t) {
        exact[t] = filter.weight((t + first - centre + 0.5) * (1.0 / stretch));
        sum += exact[t];
      }
      for (int t = 0; t < count; ++t) {
        const double weight = (sum != 0 ? exact[t] / sum : exact[t]) * (1 << kPoint);
        std::fill_n(weights + copies * t, copies, static_cast<int32_t>(weight + (weight < 0 ? -0.5 : 0.5)));
      }
      taps_.push_back({first, count, weights});
    }
  }

  const std::vector<Taps>& taps() const { return taps_; }
  int first() const { return taps_.front().first; }
  int end() const { return taps_.back().first + taps_.back().count; }

 private:
  std::vector<int32_t> weights_;
  std::vector<Taps> taps_;
};

#if defined(__x86_64__)
// Adds two taps at a time, then a single last one.
__attribute__((target("avx2"))) void sum_columns_avx2(const uint8_t* row, const std::vector<Taps>& columns, int32_t* out) {
  const __m128i half = _mm_set1_epi32(kHalf);
  for (const auto& [first, count, weights] : columns) {
    __m256i sums = _mm256_setzero_si256();
    for (int t = 0; t < count; t += 2) {
      const uint8_t* pixel = row + kChannels * (first + t);
      const __m128i taps = t + 1 < count ? _mm_loadu_si64(pixel) : _mm_loadu_si32(pixel);
      const __m256i weight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weights + kChannels * t));
      sums = _mm256_add_epi32(sums, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(taps), weight));
    }
    const __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_add_epi32(sum, half));
    out += kChannels;
  }
}
#endif

void sum_columns_plain(const uint8_t* row, const std::vector<Taps>& columns, int32_t* out) {
  for (const auto& [first, count, weights] : columns) {
    std::fill_n(out, kChannels, kHalf);
    for (int i = 0; i < kChannels * count; ++i) out[i % kChannels] += row[kChannels * first + i] * weights[i];
    out += kChannels;
  }
}

void sum_columns(const uint8_t* row, const std::vector<Taps>& columns, int32_t* out, bool avx2) {
#if defined(__x86_64__)
  if (avx2) return sum_columns_avx2(row, columns, out);
#endif
  sum_columns_plain(row, columns, out);
}

FASTEST void add_row(const uint8_t* row, int32_t weight, int values, int32_t* sums) {
  for (int i = 0; i < values; ++i) sums[i] += row[i] * weight;
}

FASTEST void round_row(const int32_t* sums, int values, uint8_t* out) {
  for (int i = 0; i < values; ++i) out[i] = std::clamp(sums[i] >> kPoint, 0, 255);
}

void resize(const uint8_t* pixels, int width, const Axis& columns, const Axis& rows, bool avx2, uint8_t* out) {
  const int values = kChannels * static_cast<int>(columns.taps().size());
  std::vector<int32_t> sums(values);
  std::vector<uint8_t> levels(values), narrow(static_cast<size_t>(values) * (rows.end() - rows.first()));
  const auto narrow_row = [&](int y) { return &narrow[static_cast<size_t>(values) * (y - rows.first())]; };
  for (int y = rows.first(); y < rows.end(); ++y) {
    sum_columns(pixels + static_cast<size_t>(kChannels) * width * y, columns.taps(), sums.data(), avx2);
    round_row(sums.data(), values, narrow_row(y));
  }
  for (const auto& [first, count, weights] : rows.taps()) {
    std::fill(sums.begin(), sums.end(), kHalf);
    for (int t = 0; t < count; ++t) add_row(narrow_row(first + t), weights[t], values, sums.data());
    round_row(sums.data(), values, levels.data());
    for (int i = 0; i < values; i += kChannels, out += 3) std::memcpy(out, &levels[i], 3);
  }
}

}  // namespace

extern "C" __attribute__((visibility("default"))) int widefield_has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") != 0;
#else
  return 0;
#endif
}

// Resizes `box` (left, top, right, bottom) of `pixels` [height,width,4] to `size` (width, height), and writes the part
// `window` (left, top, right, bottom) of the result to `out` [H,W,3]. `filter`: 0 bilinear, 1 bicubic. Returns 0, or 1
// if there is not enough memory.
extern "C" __attribute__((visibility("default"))) int widefield_resize_part(
    const uint8_t* pixels, int width, int height, const float box[4], const int size[2], int filter, const int window[4],
    int avx2, uint8_t* out) {
  try {
    const Filter& chosen = kFilters[filter];
    const Axis columns(chosen, width, box[0], box[2], size[0], window[0], window[2], kChannels);
    const Axis rows(chosen, height, box[1], box[3], size[1], window[1], window[3], 1);
    resize(pixels, width, columns, rows, avx2, out);
    return 0;
  } catch (const std::exception&) {
    return 1;
  }
}
