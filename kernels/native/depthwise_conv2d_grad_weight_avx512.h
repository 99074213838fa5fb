// The gradient of the depthwise convolution with respect to its filter, on channels_last memory for CPUs with AVX-512.
#pragma once

#include "depthwise_conv2d_avx512.h"

namespace widefield {

// Empty batches and images are left to others.
bool depthwise_conv2d_grad_weight_suits(const DepthwiseShape& shape);

// Of `sums` below.
int64_t depthwise_conv2d_grad_weight_floats(const DepthwiseShape& shape);

// grad, input [batch,height,width,channels], channels a multiple of 16 -> output [channels,kernel_height,kernel_width].
// Sums are float32, rounded once; `sums`, 64-byte aligned, is written over. Element: float, Half or BFloat16.
template <class Element>
void depthwise_conv2d_grad_weight_avx512(const DepthwiseShape& shape, const Element* grad, const Element* input,
                                         float* sums, Element* output, const ParallelFor& parallel_for);

}  // namespace widefield
