// Shared by the operators on CPU and CUDA: checks, memory formats, PyTorch's own convolution.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

#include "cuda_launch.h"
#include "depthwise_conv2d_cpu.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // its name before PyTorch 2.12
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace widefield {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Activation parse_activation(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  STD_TORCH_CHECK(false, "activation '", name, "': choose one of none, relu, gelu");
}

inline std::optional<DataType> data_type(ScalarType type) {
  if (type == ScalarType::Float) return DataType::float32;
  if (type == ScalarType::Half) return DataType::float16;
  if (type == ScalarType::BFloat16) return DataType::bfloat16;
  return std::nullopt;
}

inline void check_arguments(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  STD_TORCH_CHECK(input.dim() == 4, "input has ", input.dim(), " dimensions: [N,C,H,W] is expected");
  const int64_t channels = input.size(1);
  STD_TORCH_CHECK(channels > 0, "input has no channels: at least one is expected");
  STD_TORCH_CHECK(input.size(2) > 0 && input.size(3) > 0, "input has images of ", input.size(2), " x ", input.size(3),
                  ": at least one pixel is expected");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(0) == channels && weight.size(1) == 1, "weight does not fit: [",
                  channels, ",1,Kh,Kw] is expected");
  STD_TORCH_CHECK(weight.size(2) % 2 == 1 && weight.size(3) % 2 == 1, "the kernel is ", weight.size(2), " x ",
                  weight.size(3), ": both sides must be odd");
  STD_TORCH_CHECK(data_type(input.scalar_type()) || input.scalar_type() == ScalarType::Double,
                  "input of float32, float16, bfloat16 or float64 is expected");
  STD_TORCH_CHECK(weight.scalar_type() == input.scalar_type(), "weight and input differ in dtype");
  STD_TORCH_CHECK(weight.device() == input.device(), "weight and input lie on different devices");
  if (!bias) return;
  STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == channels, "bias does not fit: [", channels, "] is expected");
  STD_TORCH_CHECK(bias->scalar_type() == input.scalar_type(), "bias and input differ in dtype");
  STD_TORCH_CHECK(bias->device() == input.device(), "bias and input lie on different devices");
}

inline bool is_channels_last(const Tensor& t) {
  int64_t expected = 1;
  for (const int dim : {1, 3, 2, 0}) {
    if (t.size(dim) != 1 && t.stride(dim) != expected) return false;
    expected *= t.size(dim);
  }
  return true;
}

// `t` itself if it is contiguous or channels_last, else a contiguous copy. Outputs have the memory format of the
// result.
inline Tensor contiguous_or_channels_last(const Tensor& t) {
  return t.is_contiguous() || is_channels_last(t) ? t : torch::stable::contiguous(t);
}

using Convolution = decltype(&aoti_torch_cpu_convolution);

inline Tensor convolution(Convolution function, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  const int64_t ones[] = {1, 1}, zeros[] = {0, 0}, padding[] = {weight.size(2) / 2, weight.size(3) / 2};
  AtenTensorHandle bias_handle = bias ? bias->get() : nullptr;
  AtenTensorHandle output = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(function(input.get(), weight.get(), bias ? &bias_handle : nullptr, ones, 2, padding, 2,
                                         ones, 2, 0, zeros, 2, input.size(1), &output));
  return Tensor(output);
}

inline Tensor activate(Tensor output, Activation activation) {
  if (activation == Activation::none) return output;
  StableIValue stack[2] = {torch::stable::detail::from(output), 0};
  if (activation == Activation::gelu) stack[1] = torch::stable::detail::from(std::string("none"));
  const char* name = activation == Activation::relu ? "aten::relu_" : "aten::gelu_";
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace widefield
