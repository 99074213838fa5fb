// The CPU kernels compiled for AVX-512.
#include "depthwise_conv2d_cpu.h"

#pragma GCC push_options
#pragma GCC target("avx512f")

// clang-format off
#include "simd_avx512.h"
#include "float32_forward.h"
#include "float32_grad_weight.h"
// clang-format on

namespace widefield {

const CpuKernels<float> avx512_float = {&convolve<Float32<float>>, &grad_weight<float>};
const CpuKernels<Half> avx512_half = {&convolve<Float32<Half>>, &grad_weight<Half>};
const CpuKernels<BFloat16> avx512_bfloat16 = {&convolve<Float32<BFloat16>>, &grad_weight<BFloat16>};

}  // namespace widefield

#pragma GCC pop_options
