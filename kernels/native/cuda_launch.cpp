#include "cuda_launch.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <tuple>

namespace widefield {
namespace {

constexpr int kToeplitzTaps = 25;  // dispatch.TOEPLITZ_TAPS
constexpr int kLargestSide = 255;  // dispatch.LARGEST_SIDE
constexpr int kPackGroup = 8;        // packing.PACK_GROUP
constexpr int64_t kMaxGridX = 0x7fffffff, kMaxGridY = 65535;
constexpr int64_t kMaxElements = int64_t{1} << 31;  // what int32 counts
constexpr int kFewRows = 128;                       // of all images: blocks of 16 serve them

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int element_bytes(DataType dtype) { return dtype == DataType::float32 ? 4 : 2; }

// Cubins of compute capability 8.x run on any later 8.y; from 9.0 on they are for one architecture alone ("sm_90a").
bool runs(const Cubin& cubin, int architecture) {
  return cubin.architecture == architecture ||
         (architecture / 10 == 8 && cubin.architecture / 10 == 8 && cubin.architecture < architecture);
}

// The newest that the device can run.
const SimpleKernel* find_simple(int architecture, DataType dtype, bool channels_last) {
  const SimpleKernel* best = nullptr;
  for (const SimpleKernel *k = kSimpleKernels; k != kSimpleKernels + kSimpleKernelCount; ++k)
    if (runs(k->cubin, architecture) && k->dtype == dtype && k->channels_last == channels_last &&
        (!best || k->cubin.architecture > best->cubin.architecture))
      best = k;
  return best;
}

const PackKernel* find_pack(int architecture, DataType dtype) {
  for (const PackKernel* k = kPackKernels; k != kPackKernels + kPackKernelCount; ++k)
    if (runs(k->cubin, architecture) && k->element_bytes == element_bytes(dtype)) return k;
  return nullptr;
}

// toeplitz.alignment: elements, at most 8, that every row of contiguous input and output begins at a multiple of.
int alignment(const KernelArguments& a, DataType dtype) {
  for (const int elements : {8, 4, 2}) {
    const uintptr_t bytes = static_cast<uintptr_t>(elements) * element_bytes(dtype);
    if (a.width % elements == 0 && reinterpret_cast<uintptr_t>(a.input) % bytes == 0 &&
        reinterpret_cast<uintptr_t>(a.output) % bytes == 0)
      return elements;
  }
  return 1;
}

// Whether the tile's window holds all columns that its outputs see.
bool covers(const ToeplitzKernel& k, const KernelArguments& a) {
  const int pad = a.kernel_width / 2;
  return k.offset == 0 ? a.width <= k.columns : k.offset >= pad && k.window >= k.offset + k.columns + pad;
}

// The least multiply-adds a row; then blocks that fit the batch; then the widest loads.
const ToeplitzKernel* find_toeplitz(int architecture, const KernelArguments& a, DataType dtype) {
  const int widest = alignment(a, dtype);
  const auto rank = [&](const ToeplitzKernel& k) {
    const bool misfit = (a.batch * a.height <= kFewRows) != (k.block_m == 16);
    return std::make_tuple(ceil_div(a.width, k.columns) * k.columns * k.window, misfit, -k.alignment);
  };
  const ToeplitzKernel* best = nullptr;
  for (const ToeplitzKernel* k = kToeplitzKernels; k != kToeplitzKernels + kToeplitzKernelCount; ++k)
    if (runs(k->cubin, architecture) && k->dtype == dtype && k->alignment <= widest && covers(*k, a) &&
        (!best || rank(*k) < rank(*best)))
      best = k;
  return best;
}

// Programs a channel and column of tiles, where one takes 2^log images.
int64_t toeplitz_programs(const ToeplitzKernel& k, const KernelArguments& a, int log) {
  return ceil_div(a.batch, int64_t{1} << log) * ceil_div(ceil_div(a.height, k.rows), k.block_m >> log);
}

// toeplitz.log_images: a program's block_m rows are 2^this images of each of its row blocks.
int log_images(const ToeplitzKernel& k, const KernelArguments& a) {
  int best = 0;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int log = 0; k.block_m >> log; ++log) {
    const int64_t programs = toeplitz_programs(k, a, log);
    if (programs <= least) best = log, least = programs;
  }
  return best;
}

}  // namespace

bool launch_simple(const Device& device, const KernelArguments& a, DataType dtype, bool channels_last, void* stream) {
  const SimpleKernel* kernel = find_simple(device.architecture, dtype, channels_last);
  if (!kernel) return false;
  const int64_t grid_x = a.batch * ceil_div(static_cast<int64_t>(a.height) * a.width, kernel->block_pixels);
  const int64_t grid_y = ceil_div(a.channels, kernel->block_channels);
  if (grid_x > kMaxGridX || grid_y > kMaxGridY) return false;

  // In the order of depthwise_conv2d_kernel's run-time arguments, then Triton's two scratch pointers.
  KernelArguments copy = a;
  if (!copy.bias) copy.bias = copy.weight;  // a valid address that is not read
  int has_bias = a.bias != nullptr;
  void *global_scratch = nullptr, *profile_scratch = nullptr;
  void* parameters[] = {&copy.input,      &copy.weight,     &copy.bias,          &copy.output,       &copy.channels,
                        &copy.height,     &copy.width,      &copy.kernel_height, &copy.kernel_width, &copy.strides[0],
                        &copy.strides[1], &copy.strides[2], &copy.strides[3],    &has_bias,          &copy.activation,
                        &global_scratch,  &profile_scratch};
  launch_cubin(device, kernel->cubin, static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y), stream, parameters);
  return true;
}

std::optional<ToeplitzPlan> plan_toeplitz(const Device& device, const KernelArguments& a, DataType dtype) {
  if (static_cast<int64_t>(a.kernel_height) * a.kernel_width < kToeplitzTaps) return std::nullopt;
  if (std::max(a.kernel_height, a.kernel_width) > kLargestSide) return std::nullopt;
  if (a.batch * a.channels * a.height * a.width >= kMaxElements || a.channels > kMaxGridY) return std::nullopt;
  const PackKernel* pack = find_pack(device.architecture, dtype);
  const ToeplitzKernel* kernel = find_toeplitz(device.architecture, a, dtype);
  if (!pack || !kernel) return std::nullopt;
  const int planes = a.kernel_height + 2 * (kernel->rows - 1);
  const int64_t plane = static_cast<int64_t>(kernel->window) * kernel->columns;
  return ToeplitzPlan{device, pack, kernel, planes, a.channels * planes * plane};
}

void launch_toeplitz(const ToeplitzPlan& plan, const KernelArguments& a, void* packed, void* stream) {
  KernelArguments copy = a;
  if (!copy.bias) copy.bias = copy.weight;  // a valid address that is not read
  ToeplitzKernel tile = *plan.kernel;
  int planes = plan.planes, has_bias = a.bias != nullptr, batch = static_cast<int>(a.batch);
  int log = log_images(tile, a);
  const int64_t grid_x = toeplitz_programs(tile, a, log) * ceil_div(a.width, tile.columns);
  void *global_scratch = nullptr, *profile_scratch = nullptr;

  // In the order of pack_filter_kernel's and toeplitz_kernel's run-time arguments, then Triton's two scratch pointers.
  void* pack[] = {&copy.weight, &packed,       &copy.kernel_height, &copy.kernel_width, &tile.offset,    &planes,
                  &tile.rows,   &tile.columns, &tile.window,        &global_scratch,    &profile_scratch};
  launch_cubin(plan.device, plan.pack->cubin, copy.channels, static_cast<unsigned>(ceil_div(planes, kPackGroup)), stream,
               pack);
  void* product[] = {&copy.input,         &packed,
                     &copy.weight,        &copy.bias,
                     &copy.output,        &batch,
                     &copy.channels,      &copy.height,
                     &copy.width,         &copy.kernel_height,
                     &copy.kernel_width,  &planes,
                     &log,                &has_bias,
                     &copy.activation,    &global_scratch,
                     &profile_scratch};
  launch_cubin(plan.device, plan.kernel->cubin, static_cast<unsigned>(grid_x), copy.channels, stream,
               product);
}

void warn_no_kernel() {
  static std::atomic_flag warned = ATOMIC_FLAG_INIT;
  if (!warned.test_and_set())
    std::fprintf(stderr, "widefield: no kernel is compiled for this GPU; PyTorch's convolution is used instead\n");
}

}  // namespace widefield
