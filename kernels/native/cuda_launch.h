// Launches the ahead-of-time compiled kernel through the CUDA driver, found at run time: no CUDA is needed to build.
#pragma once

#include <cstdint>

namespace widefield {

enum class DataType { float32, float16, bfloat16 };

// One compiled form of the kernel; the table is generated beside the cubins (kernels/native/aot.py).
struct Cubin {
  int architecture;  // compute capability, major * 10 + minor
  DataType dtype;
  bool channels_last;
  const unsigned char* image;
  const char* name;
  unsigned shared_bytes;
  unsigned warps;
  int block_pixels, block_channels;
};
extern const Cubin kCubins[];
extern const int kCubinCount;

struct KernelArguments {
  const void *input, *weight, *bias;  // bias may be null
  void* output;
  int64_t batch;
  int channels, height, width, kernel_height, kernel_width;
  int64_t strides[4];  // of input and output alike
  int activation;
};

// Launches on `stream` of the current device. False when no cubin fits the device's architecture; throws
// std::runtime_error with the driver's words when a call fails.
bool launch_depthwise_conv2d(const KernelArguments& arguments, DataType dtype, bool channels_last, void* stream);

}  // namespace widefield
