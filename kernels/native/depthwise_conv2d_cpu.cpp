// Which instructions this processor has.
#include "depthwise_conv2d_cpu.h"

#include <cstdlib>
#include <string>

namespace widefield {

namespace {

enum class Instructions { none, avx2, avx512, avx512_bf16 };

Instructions found() {
  const char* const set = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string wanted = set ? set : "";
  if (wanted == "default") return Instructions::none;
  if (wanted != "avx2" && __builtin_cpu_supports("avx512f"))
    return __builtin_cpu_supports("avx512bf16") ? Instructions::avx512_bf16 : Instructions::avx512;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return avx2 ? Instructions::avx2 : Instructions::none;
}

template <class Element>
const CpuKernels<Element>* choose(const CpuKernels<Element>& avx2, const CpuKernels<Element>& avx512,
                                  const CpuKernels<Element>& avx512_bf16) {
  static const Instructions instructions = found();
  switch (instructions) {
    case Instructions::none: return nullptr;
    case Instructions::avx2: return &avx2;
    case Instructions::avx512: return &avx512;
    case Instructions::avx512_bf16: return &avx512_bf16;
  }
  return nullptr;
}

}  // namespace

template <>
const CpuKernels<float>* cpu_kernels() {
  return choose(avx2_float, avx512_float, avx512_float);
}

template <>
const CpuKernels<Half>* cpu_kernels() {
  return choose(avx2_half, avx512_half, avx512_half);
}

template <>
const CpuKernels<BFloat16>* cpu_kernels() {
  return choose(avx2_bfloat16, avx512_bfloat16, avx512_bf16_bfloat16);
}

}  // namespace widefield
