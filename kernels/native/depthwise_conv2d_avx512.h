// Depthwise convolution on channels_last memory for CPUs with AVX-512: taps outside the image are skipped. Sums are
// float32, whatever the elements are.
#pragma once

#include <cstdint>
#include <functional>

namespace widefield {

enum class Activation { none, relu, gelu };

struct DepthwiseShape {
  int64_t batch, height, width, channels, kernel_height, kernel_width;
};

// As they lie in memory.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Calls body(begin, end) on parts of [0, tasks), from several threads.
using ParallelFor = std::function<void(int64_t tasks, const std::function<void(int64_t, int64_t)>& body)>;

// True where this machine and this shape are served better here than by oneDNN (measured in benchmarks/).
bool depthwise_conv2d_avx512_suits(const DepthwiseShape& shape);

// The other way round, in bfloat16: with few taps the conversions to float32 and back cost as much as the taps, and
// oneDNN has instructions for them. In a small layer the time that it takes to pack the filter counts for more.
bool depthwise_conv2d_onednn_suits(const DepthwiseShape& shape);

// input, output [batch,height,width,channels]; weight [channels,kernel_height,kernel_width]; bias [channels] or null.
// Element: float, Half or BFloat16; rounded once, at the end.
template <class Element>
void depthwise_conv2d_avx512(const DepthwiseShape& shape, const Element* input, const Element* weight,
                             const Element* bias, Activation activation, Element* output, int threads,
                             const ParallelFor& parallel_for);

}  // namespace widefield
