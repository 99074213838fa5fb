// The depthwise convolution and its filter's gradient on channels_last memory, for CPUs with AVX2 or AVX-512.
#pragma once

// All standard headers that the kernels need, before `#pragma GCC target`: their functions must run on any processor.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>

namespace widefield {

enum class Activation { none = 0, relu = 1, gelu = 2 };  // the numbers of activation.ACTIVATIONS

struct DepthwiseShape {
  int64_t batch, height, width, channels, kernel_height, kernel_width;
};

// The bits of a number in memory.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// Calls body(begin, end) on parts of [0, tasks), from several threads.
using ParallelFor = std::function<void(int64_t tasks, const std::function<void(int64_t, int64_t)>& body)>;

// The kernels for float, Half or BFloat16; channels are a multiple of 16. Rows outside the image are skipped, and
// columns to within a tile: the rest are zeros that are multiplied, so that an infinite weight there gives NaN. Sums
// are float32, rounded once, at the end.
template <class Element>
struct CpuKernels {
  // input, output [batch,height,width,channels]; weight [channels,kernel_height,kernel_width]; bias [channels] or null.
  void (*forward)(const DepthwiseShape& shape, const Element* input, const Element* weight, const Element* bias,
                  Activation activation, Element* output, int threads, const ParallelFor& parallel_for);
  // grad, input [batch,height,width,channels] -> output [channels,kernel_height,kernel_width]. `sums` is scratch memory
  // of grad_weight_floats(shape), 64-byte aligned.
  void (*grad_weight)(const DepthwiseShape& shape, const Element* grad, const Element* input, float* sums,
                      Element* output, const ParallelFor& parallel_for);
};

extern const CpuKernels<float> avx2_float, avx512_float;
extern const CpuKernels<Half> avx2_half, avx512_half;
extern const CpuKernels<BFloat16> avx2_bfloat16, avx512_bfloat16;
extern const decltype(CpuKernels<BFloat16>::forward) avx512_bf16_forward;

// Returns the kernels for this processor, or null if it has neither AVX2 nor AVX-512. PyTorch's $ATEN_CPU_CAPABILITY
// restricts them: "default" to none, "avx2" to AVX2.
template <class Element>
const CpuKernels<Element>* cpu_kernels();
template <>
const CpuKernels<float>* cpu_kernels();
template <>
const CpuKernels<Half>* cpu_kernels();
template <>
const CpuKernels<BFloat16>* cpu_kernels();

// The number of parts in which the batch is summed. It depends only on the shape: equal bits for any number of threads.
inline int64_t grad_weight_parts(const DepthwiseShape& s) {
  constexpr int64_t kTasks = 64, kBlock = 16;  // at least kTasks if the batch allows it: work for many cores
  const int64_t parts = (kTasks * kBlock + s.channels - 1) / s.channels;
  return parts < s.batch ? parts : s.batch;
}

inline int64_t grad_weight_floats(const DepthwiseShape& s) {
  return grad_weight_parts(s) * s.channels * s.kernel_height * s.kernel_width;
}

}  // namespace widefield
