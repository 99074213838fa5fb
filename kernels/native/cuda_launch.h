// Chooses among the ahead-of-time compiled kernels (kernels/native/variants.py) and launches them.
#pragma once

#include <cstdint>
#include <optional>

#include "cuda_driver.h"

namespace widefield {

enum class DataType { float32, float16, bfloat16 };

// The tables are generated beside the cubins (kernels/native/aot.py).
struct TapsKernel {
  Cubin cubin;
  DataType dtype;
  bool channels_last;
  int block_pixels, block_channels;
};
struct PackKernel {
  Cubin cubin;
  int element_bytes;
};
struct ToeplitzKernel {
  Cubin cubin;
  DataType dtype;
  bool flat;  // tiles of whole rows
  int columns, rows, block_m;
  int alignment, row_alignment;  // elements that the runs and the rows of input and output must begin at a multiple of
  int activation;                // the only one, or -1: any
};
struct WholeImageKernel {
  Cubin cubin;
  DataType dtype;
  int size, kernel;  // height = width of image and filter
  int block_n, alignment;
};
extern const TapsKernel kTapsKernels[];
extern const int kTapsKernelCount;
extern const PackKernel kPackKernels[];
extern const int kPackKernelCount;
extern const ToeplitzKernel kToeplitzKernels[];
extern const int kToeplitzKernelCount;
extern const WholeImageKernel kWholeImageKernels[];
extern const int kWholeImageKernelCount;

struct KernelArguments {
  const void *input, *weight, *bias;  // bias may be null
  void* output;
  int64_t batch;
  int channels, height, width, kernel_height, kernel_width;
  int64_t strides[4];  // of input and output alike
  int activation;
};

// All launch on `stream` of `device`, and throw std::runtime_error with the driver's words when a call fails.

// kernel.py. False when no cubin fits the device's architecture, or the problem exceeds the hardware's grid, or an image
// what int32 counts.
bool launch_taps(const Device& device, const KernelArguments& arguments, DataType dtype, bool channels_last,
                   void* stream);

struct TensorCorePlan {
  Device device;
  const WholeImageKernel* whole_image;  // or null: then those below
  const PackKernel* pack;
  const ToeplitzKernel* toeplitz;
  int window, offset, planes;
  int64_t packed_elements;  // of the input's type: what launch_tensor_cores needs room for
};

// whole_image.py or toeplitz.py on contiguous memory, or nothing where kernel.py is to serve: filters of few taps, 2^31
// elements or more, an architecture or a grid that no cubin fits. Of the pointers, it reads how input and output are
// aligned.
std::optional<TensorCorePlan> plan_tensor_cores(const Device& device, const KernelArguments& arguments, DataType dtype);

// Convolves; toeplitz.py's filter is packed into `packed` first.
void launch_tensor_cores(const TensorCorePlan& plan, const KernelArguments& arguments, void* packed, void* stream);

// Says on stderr, once in a process, that PyTorch's convolution serves instead.
void warn_no_kernel();

}  // namespace widefield
