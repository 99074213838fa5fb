// widefield::depthwise_conv2d on a GPU: the ahead-of-time compiled kernels, else PyTorch's convolution.
#include <torch/csrc/stable/accelerator.h>

#include <dlfcn.h>

#include "operands.h"

namespace widefield {
namespace {

// Returns a symbol of libtorch_cuda, which a CPU-only build lacks. The library's handle is used because a server may
// load it with local symbols.
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

// Runs a tensor-core kernel on contiguous memory; channels_last is copied there and back. Returns nothing if none
// applies.
std::optional<Tensor> convolve_tensor_cores(const Device& device, const Tensor& source, KernelArguments arguments,
                                            const Tensor& filter, DataType dtype, void* stream) {
  const bool copied = !source.is_contiguous();
  if (copied) arguments.input = nullptr;  // a copy is aligned as every allocation is: enough for any load
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
  const Tensor source = contiguous_or_channels_last(input);
  const torch::stable::accelerator::DeviceGuard guard(source.get_device());
  if (source.numel() == 0) return torch::stable::empty_like(source);

  if (const auto dtype = data_type(source.scalar_type())) {
    const Device device = Device::get(source.get_device());
    const Tensor filter = torch::stable::contiguous(weight);
    const std::optional<Tensor> shift = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
    void* stream = current_stream(source);
    KernelArguments arguments{
        source.data_ptr(), filter.data_ptr(), shift ? shift->data_ptr() : nullptr, nullptr,
        source.size(0), source.size(1), source.size(2), source.size(3), filter.size(2), filter.size(3),
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

STABLE_TORCH_LIBRARY_IMPL(widefield, CUDA, m) {
  m.impl("depthwise_conv2d", TORCH_BOX(&widefield::depthwise_conv2d_cuda));
}
