// widefield::depthwise_conv2d for processes with libtorch >= 2.10 and no Python, on LibTorch's stable ABI.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <dlfcn.h>

#include <optional>
#include <string>

#include "cuda_launch.h"
#include "depthwise_conv2d_cpu.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // its name before PyTorch 2.12
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace widefield {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kLeastTaps = 9;  // with fewer oneDNN is as fast

Activation parse_activation(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  STD_TORCH_CHECK(false, "activation '", name, "': choose one of none, relu, gelu");
}

std::optional<DataType> data_type(ScalarType type) {
  if (type == ScalarType::Float) return DataType::float32;
  if (type == ScalarType::Half) return DataType::float16;
  if (type == ScalarType::BFloat16) return DataType::bfloat16;
  return std::nullopt;
}

void check_arguments(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
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

bool is_channels_last(const Tensor& t) {
  int64_t expected = 1;
  for (const int dim : {1, 3, 2, 0}) {
    if (t.size(dim) != 1 && t.stride(dim) != expected) return false;
    expected *= t.size(dim);
  }
  return true;
}

// The tensor itself where it is contiguous or channels_last, else a contiguous copy: outputs are laid out as it is.
Tensor dense(const Tensor& t) { return t.is_contiguous() || is_channels_last(t) ? t : torch::stable::contiguous(t); }

using Convolution = decltype(&aoti_torch_cpu_convolution);

Tensor convolution(Convolution function, const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  const int64_t ones[] = {1, 1}, zeros[] = {0, 0}, padding[] = {weight.size(2) / 2, weight.size(3) / 2};
  AtenTensorHandle bias_handle = bias ? bias->get() : nullptr;
  AtenTensorHandle output = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(function(input.get(), weight.get(), bias ? &bias_handle : nullptr, ones, 2, padding, 2,
                                         ones, 2, 0, zeros, 2, input.size(1), &output));
  return Tensor(output);
}

Tensor activate(Tensor output, Activation activation) {
  if (activation == Activation::none) return output;
  StableIValue stack[2] = {torch::stable::detail::from(output), 0};
  if (activation == Activation::gelu) stack[1] = torch::stable::detail::from(std::string("none"));
  const char* name = activation == Activation::relu ? "aten::relu_" : "aten::gelu_";
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

void run_parallel(int64_t tasks, const std::function<void(int64_t, int64_t)>& body) {
  torch::stable::parallel_for(0, tasks, 1, body);
}

// A kernel of ours; nothing where none serves.
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

bool whole_blocks(const DepthwiseShape& s) {
  return s.channels % 16 == 0 && s.batch * s.height * s.width * s.channels > 0;
}

// source [N,C,H,W] in channels_last; the result too.
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
  return output ? *output : activate(convolution(aoti_torch_cpu_convolution, source, weight, bias), activation);
}

Tensor depthwise_conv2d_cpu(Tensor input, Tensor weight, std::optional<Tensor> bias, std::string activation) {
  const Activation act = parse_activation(activation);
  check_arguments(input, weight, bias);
  const Tensor source = dense(input);
  const bool converted = !is_channels_last(source);  // in NCHW oneDNN takes up to 74 times as long: never that
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

// A symbol of libtorch_cuda, which a CPU-only build does not have; by its handle, because a server loads it privately.
template <class Function>
Function cuda_symbol(const char* name) {
  void* library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_NOLOAD);
  const auto function = reinterpret_cast<Function>(dlsym(library ? library : RTLD_DEFAULT, name));
  STD_TORCH_CHECK(function, "this libtorch has no ", name, ": it was built without CUDA");
  return function;
}

void* current_stream(const Tensor& t) {
  using CurrentStream = AOTITorchError (*)(int32_t device, void** stream);
  static const auto function = cuda_symbol<CurrentStream>("aoti_torch_get_current_cuda_stream");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(function(t.get_device(), &stream));
  return stream;
}

// A tensor-core kernel on contiguous memory, to which channels_last is copied and back; nothing where none serves.
std::optional<Tensor> convolve_tensor_cores(const Device& device, const Tensor& source, KernelArguments arguments,
                                            const Tensor& filter, DataType dtype, void* stream) {
  const bool copied = !source.is_contiguous();
  if (copied) arguments.input = nullptr;  // a copy is aligned as every allocation is, to more than any load needs
  const auto plan = plan_tensor_cores(device, arguments, dtype);
  if (!plan) return std::nullopt;
  const Tensor input = copied ? torch::stable::contiguous(source) : source;
  Tensor output = torch::stable::empty_like(input);
  const Tensor packed = torch::stable::new_empty(filter, {plan->packed_elements});
  arguments.input = input.data_ptr();
  arguments.output = output.data_ptr();
  launch_tensor_cores(*plan, arguments, packed.data_ptr(), stream);
  if (!copied) return output;
  Tensor result = torch::stable::empty_like(source);
  torch::stable::copy_(result, output);
  return result;
}

Tensor depthwise_conv2d_cuda(Tensor input, Tensor weight, std::optional<Tensor> bias, std::string activation) {
  const Activation act = parse_activation(activation);
  check_arguments(input, weight, bias);
  const Tensor source = dense(input);
  const torch::stable::accelerator::DeviceGuard guard(source.get_device());
  if (source.numel() == 0) return torch::stable::empty_like(source);

  if (const auto dtype = data_type(source.scalar_type())) {
    const Device device = Device::get(source.get_device());
    const Tensor filter = torch::stable::contiguous(weight);
    const std::optional<Tensor> shift = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
    void* stream = current_stream(source);
    KernelArguments arguments{
        source.data_ptr(), filter.data_ptr(), shift ? shift->data_ptr() : nullptr, nullptr, source.size(0),
        static_cast<int>(source.size(1)), static_cast<int>(source.size(2)), static_cast<int>(source.size(3)),
        static_cast<int>(filter.size(2)), static_cast<int>(filter.size(3)),
        {source.stride(0), source.stride(1), source.stride(2), source.stride(3)}, static_cast<int>(act)};
    if (auto output = convolve_tensor_cores(device, source, arguments, filter, *dtype, stream)) return *output;
    Tensor output = torch::stable::empty_like(source);
    arguments.output = output.data_ptr();
    if (launch_taps(device, arguments, *dtype, !source.is_contiguous(), stream)) return output;
    warn_no_kernel();
  }
  static const auto cuda_convolution = cuda_symbol<Convolution>("aoti_torch_cuda_convolution");
  Tensor output = torch::stable::empty_like(source);
  torch::stable::copy_(output, activate(convolution(cuda_convolution, source, weight, bias), act));
  return output;
}

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

STABLE_TORCH_LIBRARY_IMPL(widefield, CUDA, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&widefield::depthwise_conv2d_cuda));
}
