// widefield::depthwise_conv2d for processes with libtorch >= 2.10 and no Python, on LibTorch's stable ABI: the schemas,
// and the operators on a CPU.
#include "operands.h"

namespace widefield {
namespace {

constexpr int64_t kLeastTaps = 9;  // with fewer oneDNN is as fast

void run_parallel(int64_t tasks, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, tasks, 1, body);
}

// Convolves with our kernel; returns nothing if there is none for this processor.
template <class Element>
std::optional<Tensor> convolve_by_kernel(const DepthwiseShape& shape, const Tensor& source, const Tensor& weight,
                                         const std::optional<Tensor>& bias, Activation activation) {
  const CpuKernels<Element>* const kernels = cpu_kernels<Element>();
  if (!kernels) return std::nullopt;
  const Tensor filter = torch::stable::contiguous(weight);
  const std::optional<Tensor> shift = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
  Tensor output = torch::stable::empty_like(source);
  kernels->forward(shape, static_cast<const Element*>(source.data_ptr()),
                   static_cast<const Element*>(filter.data_ptr()),
                   shift ? static_cast<const Element*>(shift->data_ptr()) : nullptr, activation,
                   static_cast<Element*>(output.data_ptr()), static_cast<int>(torch::stable::get_num_threads()),
                   run_parallel);
  return output;
}

// oneDNN has no float16: PyTorch's own kernel for it is inexact and takes 15 to 50 times as long as in float32.
Tensor convolve_by_pytorch(const Tensor& source, const Tensor& weight, const std::optional<Tensor>& bias,
                           Activation activation) {
  const bool half = source.scalar_type() == ScalarType::Half;
  const auto exact = [&](const Tensor& t) { return half ? torch::stable::to(t, ScalarType::Float) : t; };
  const std::optional<Tensor> shift = bias ? std::optional(exact(*bias)) : std::nullopt;
  const Tensor output = activate(convolution(aoti_torch_cpu_convolution, exact(source), exact(weight), shift), activation);
  return half ? torch::stable::to(output, ScalarType::Half) : output;
}

bool whole_blocks(const DepthwiseShape& s) {
  return s.channels % 16 == 0 && s.batch * s.height * s.width * s.channels > 0;
}

// source and result [N,C,H,W], both in channels_last.
Tensor convolve_channels_last(const Tensor& source, const Tensor& weight, const std::optional<Tensor>& bias,
                              Activation activation) {
  const DepthwiseShape shape{source.size(0), source.size(2), source.size(3),
                             source.size(1), weight.size(2), weight.size(3)};
  const ScalarType type = source.scalar_type();
  std::optional<Tensor> output;
  if (whole_blocks(shape) && shape.kernel_height * shape.kernel_width >= kLeastTaps) {
    if (type == ScalarType::Float) output = convolve_by_kernel<float>(shape, source, weight, bias, activation);
    if (type == ScalarType::Half) output = convolve_by_kernel<Half>(shape, source, weight, bias, activation);
    if (type == ScalarType::BFloat16) output = convolve_by_kernel<BFloat16>(shape, source, weight, bias, activation);
  }
  return output ? *output : convolve_by_pytorch(source, weight, bias, activation);
}

Tensor depthwise_conv2d_cpu(Tensor input, Tensor weight, std::optional<Tensor> bias, std::string activation) {
  const Activation act = parse_activation(activation);
  check_arguments(input, weight, bias);
  const Tensor source = contiguous_or_channels_last(input);
  const bool converted = !is_channels_last(source);  // in NCHW oneDNN takes up to 74 times as long
  const Tensor channels_last = converted ? torch::stable::contiguous(source, MemoryFormat::ChannelsLast) : source;
  Tensor output = convolve_channels_last(channels_last, weight, bias, act);
  if (!converted && is_channels_last(output)) return output;
  Tensor result = torch::stable::empty_like(source);
  torch::stable::copy_(result, output);
  return result;
}

template <class Element>
Tensor grad_weight_by_kernel(const DepthwiseShape& shape, const Tensor& grad, const Tensor& input) {
  const CpuKernels<Element>* const kernels = cpu_kernels<Element>();
  STD_TORCH_CHECK(kernels, "this processor has neither AVX2 nor AVX-512, or ATEN_CPU_CAPABILITY forbids them");
  const Tensor sums = torch::stable::new_empty(input, {grad_weight_floats(shape)}, ScalarType::Float);
  Tensor output = torch::stable::new_empty(input, {shape.channels, 1, shape.kernel_height, shape.kernel_width});
  kernels->grad_weight(shape, static_cast<const Element*>(grad.data_ptr()),
                       static_cast<const Element*>(input.data_ptr()), static_cast<float*>(sums.data_ptr()),
                       static_cast<Element*>(output.data_ptr()), run_parallel);
  return output;
}

// grad, input [N,C,H,W] in channels_last, C a multiple of 16 -> [C,1,Kh,Kw] contiguous.
Tensor depthwise_conv2d_grad_weight_cpu(Tensor grad, Tensor input, int64_t kernel_height, int64_t kernel_width) {
  STD_TORCH_CHECK(input.dim() == 4 && grad.dim() == 4, "input and gradient of 4 dimensions are expected");
  for (const int dim : {0, 1, 2, 3})
    STD_TORCH_CHECK(grad.size(dim) == input.size(dim), "input and gradient differ in size ", dim);
  STD_TORCH_CHECK(grad.scalar_type() == input.scalar_type(), "input and gradient differ in dtype");
  STD_TORCH_CHECK(is_channels_last(input) && is_channels_last(grad), "channels_last memory is expected");
  STD_TORCH_CHECK(kernel_height % 2 == 1 && kernel_width % 2 == 1, "both sides of the kernel must be odd");
  const DepthwiseShape shape{input.size(0), input.size(2), input.size(3), input.size(1), kernel_height, kernel_width};
  STD_TORCH_CHECK(whole_blocks(shape), "a multiple of 16 channels, and an image, are expected");
  switch (input.scalar_type()) {
    case ScalarType::Float: return grad_weight_by_kernel<float>(shape, grad, input);
    case ScalarType::Half: return grad_weight_by_kernel<Half>(shape, grad, input);
    case ScalarType::BFloat16: return grad_weight_by_kernel<BFloat16>(shape, grad, input);
    default: STD_TORCH_CHECK(false, "float32, float16 or bfloat16 is expected");
  }
}

bool has_cpu_kernels() { return cpu_kernels<float>() != nullptr; }

}  // namespace
}  // namespace widefield

STABLE_TORCH_LIBRARY(widefield, m) {
  m.def("depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias=None, str activation='none') -> Tensor");
  m.def("has_cpu_kernels() -> bool");
  m.def("depthwise_conv2d_grad_weight_kernel(Tensor grad, Tensor input, int kernel_height, int kernel_width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(widefield, CompositeExplicitAutograd, m) {
  m.impl("has_cpu_kernels", TORCH_BOX(&widefield::has_cpu_kernels));
}

STABLE_TORCH_LIBRARY_IMPL(widefield, CPU, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&widefield::depthwise_conv2d_cpu));
  m.impl("depthwise_conv2d_grad_weight_kernel", TORCH_BOX(&widefield::depthwise_conv2d_grad_weight_cpu));
}
