// The choice of the CPU kernels by the processor's instructions.
#include "depthwise_conv2d_cpu.h"

#include <cstdlib>
#include <string>

namespace widefield {

namespace {

enum class Instructions { none, avx2, avx512 };

Instructions found() {
  const char* const set = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string wanted = set ? set : "";
  if (wanted == "default") return Instructions::none;
  if (wanted != "avx2" && __builtin_cpu_supports("avx512f")) return Instructions::avx512;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return avx2 ? Instructions::avx2 : Instructions::none;
}

template <class Element>
const CpuKernels<Element>* choose(const CpuKernels<Element>& avx2, const CpuKernels<Element>& avx512) {
  static const Instructions instructions = found();
  if (instructions == Instructions::none) return nullptr;
  return instructions == Instructions::avx2 ? &avx2 : &avx512;
}

}  // namespace

template <>
const CpuKernels<float>* cpu_kernels() {
  return choose(avx2_float, avx512_float);
}

template <>
const CpuKernels<Half>* cpu_kernels() {
  return choose(avx2_half, avx512_half);
}

template <>
const CpuKernels<BFloat16>* cpu_kernels() {
  // Intel's processors issue one vdpbf16ps for every four multiply-adds of float32: half as many products.
  static const bool pairs = __builtin_cpu_supports("avx512bf16") && !__builtin_cpu_is("intel");
  static const CpuKernels<BFloat16> with_pairs = {avx512_bf16_forward, avx512_bfloat16.grad_weight};
  return choose(avx2_bfloat16, pairs ? with_pairs : avx512_bfloat16);
}

}  // namespace widefield
