// Chooses among the ahead-of-time compiled kernels (kernels/native/variants.py) and launches them.
#pragma once

#include <cstdint>
#include <optional>

#include "cuda_driver.h"

namespace widefield {

enum class DataType { float32, float16, bfloat16 };

// The tables are generated with the cubins (cubin_table in kernels/native/build.py).
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
  int alignment, row_alignment;  // in elements, of the runs and the rows of input and output
  int activation;                // the only one supported, or -1 for any
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
  int64_t batch, channels, height, width, kernel_height, kernel_width;
  int64_t strides[4];  // of input and output alike
  int activation;
};

// The functions below launch on `stream` of `device` and throw std::runtime_error with the driver's message if a call
// fails.

// Launches kernel.py. Returns false if no cubin fits the device's architecture, the problem exceeds the hardware's
// grid, or an image has more pixels or the filter more elements than int32 can index.
bool launch_taps(const Device& device, const KernelArguments& arguments, DataType dtype, bool channels_last,
                 void* stream);

struct TensorCorePlan {
  Device device;
  const WholeImageKernel* whole_image;  // or null: then `pack` and `toeplitz`
  const PackKernel* pack;
  const ToeplitzKernel* toeplitz;
  int window, offset, planes;
  int64_t packed_elements;  // of the input's type, in launch_tensor_cores' `packed`
};

// Plans whole_image.py or toeplitz.py on contiguous memory. Returns nothing if kernel.py has to be used: for few taps,
// 2^31 elements or more, an architecture without cubins or too large a grid. Of the pointers only the alignment of
// input and output is used.
std::optional<TensorCorePlan> plan_tensor_cores(const Device& device, const KernelArguments& arguments, DataType dtype);

// Runs the plan. toeplitz.py's filter is first packed into `packed`.
void launch_tensor_cores(const TensorCorePlan& plan, const KernelArguments& arguments, void* packed, void* stream);

// Prints to stderr, once per process, that PyTorch's convolution is used instead.
void warn_no_kernel();

}  // namespace widefield
