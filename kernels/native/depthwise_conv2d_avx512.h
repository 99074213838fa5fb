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

// input, output [batch,height,width,channels]; weight [channels,kernel_height,kernel_width]; bias [channels] or null.
// Element: float, Half or BFloat16; rounded once, at the end. BFloat16 is multiplied as such where the processor has
// instructions for it, in about half the time.
template <class Element>
void depthwise_conv2d_avx512(const DepthwiseShape& shape, const Element* input, const Element* weight,
                             const Element* bias, Activation activation, Element* output, int threads,
                             const ParallelFor& parallel_for);

bool has_bf16_instructions();
void depthwise_conv2d_avx512_bf16(const DepthwiseShape& shape, const BFloat16* input, const BFloat16* weight,
                                  const BFloat16* bias, Activation activation, BFloat16* output, int threads,
                                  const ParallelFor& parallel_for);

}  // namespace widefield
