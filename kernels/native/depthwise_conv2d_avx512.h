// Depthwise convolution in float32 on channels_last memory for CPUs with AVX-512: taps outside the image are skipped.
#pragma once

#include <cstdint>
#include <functional>

namespace widefield {

enum class Activation { none, relu, gelu };

struct DepthwiseShape {
  int64_t batch, height, width, channels, kernel_height, kernel_width;
};

// Calls body(begin, end) on parts of [0, tasks), from several threads.
using ParallelFor = std::function<void(int64_t tasks, const std::function<void(int64_t, int64_t)>& body)>;

// True where this machine and this shape are served better here than by oneDNN (measured in benchmarks/).
bool depthwise_conv2d_avx512_suits(const DepthwiseShape& shape);

// input, output [batch,height,width,channels]; weight [channels,kernel_height,kernel_width]; bias [channels] or null.
void depthwise_conv2d_avx512(const DepthwiseShape& shape, const float* input, const float* weight, const float* bias,
                             Activation activation, float* output, int threads, const ParallelFor& parallel_for);

}  // namespace widefield
