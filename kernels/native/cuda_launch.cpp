#include "cuda_launch.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <limits>
#include <tuple>
#include <vector>

namespace widefield {
namespace {

constexpr int kToeplitzTaps = 25;  // dispatch.TOEPLITZ_TAPS
constexpr int kLargestSide = 255;   // dispatch.LARGEST_SIDE
constexpr int kPackGroup = 8;       // packing.PACK_GROUP
constexpr int kWidestFlat = 64;     // toeplitz.choose_tile
constexpr int64_t kFewPairs = 64;   // toeplitz.choose_form
constexpr int64_t kMaxGridX = 0x7fffffff, kMaxGridY = 65535;
constexpr int64_t kMaxElements = int64_t{1} << 31;  // int32 indexes fewer

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int element_bytes(DataType dtype) { return dtype == DataType::float32 ? 4 : 2; }

// Cubins of compute capability 8.x run on any later 8.y; from 9.0 on they run on one architecture only ("sm_90a").
bool runs(const Cubin& cubin, int architecture) {
  return cubin.architecture == architecture ||
         (architecture / 10 == 8 && cubin.architecture / 10 == 8 && cubin.architecture < architecture);
}

// Returns the cubin for the newest architecture that the device can run.
const TapsKernel* find_taps(int architecture, DataType dtype, bool channels_last) {
  const TapsKernel* best = nullptr;
  for (const TapsKernel *k = kTapsKernels; k != kTapsKernels + kTapsKernelCount; ++k)
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

// Whether input and output are both aligned to `elements`.
bool aligned(const KernelArguments& a, DataType dtype, int elements) {
  const uintptr_t places = reinterpret_cast<uintptr_t>(a.input) | reinterpret_cast<uintptr_t>(a.output);
  return places % (elements * element_bytes(dtype)) == 0;
}

// Returns the kernel with the smallest block that holds the batch, else with the largest block.
const WholeImageKernel* find_whole_image(int architecture, const KernelArguments& a, DataType dtype) {
  const auto rank = [&](const WholeImageKernel& k) { return std::make_tuple(ceil_div(a.batch, k.block_n), k.block_n); };
  const WholeImageKernel* best = nullptr;
  for (const WholeImageKernel* k = kWholeImageKernels; k != kWholeImageKernels + kWholeImageKernelCount; ++k)
    if (runs(k->cubin, architecture) && k->dtype == dtype && a.height == k->size && a.width == k->size &&
        a.kernel_height == k->kernel && a.kernel_width == k->kernel && aligned(a, dtype, k->alignment) &&
        (!best || rank(*k) < rank(*best)))
      best = k;
  return best;
}

bool serves(const ToeplitzKernel& k, const KernelArguments& a) {
  return k.flat == (a.width <= kWidestFlat) && (!k.flat || a.width <= k.columns) &&
         (k.activation < 0 || k.activation == a.activation) && a.width % k.row_alignment == 0 &&
         a.height * a.width % k.alignment == 0 && aligned(a, k.dtype, k.alignment);
}

// Returns the number of (row block, image) pairs per channel and column of tiles.
int64_t pairs(const KernelArguments& a, int rows) { return a.batch * ceil_div(a.height, rows); }

// toeplitz.choose_form's condition on a block: at most the next power of 2 of the pairs, and at most a third more pairs
// are computed than there are.
bool filled(const ToeplitzKernel& k, const KernelArguments& a) {
  const int64_t wanted = pairs(a, k.rows);
  return k.block_m < 2 * wanted && 3 * k.block_m * ceil_div(wanted, k.block_m) <= 4 * wanted;
}

// Returns toeplitz.choose_form's choice among the cubins of the fewest columns and, of those, the widest loads.
const ToeplitzKernel* find_toeplitz(int architecture, const KernelArguments& a, DataType dtype) {
  std::vector<const ToeplitzKernel*> forms;
  const auto group = [](const ToeplitzKernel& k) { return std::make_tuple(k.columns, -k.row_alignment); };
  for (const ToeplitzKernel* k = kToeplitzKernels; k != kToeplitzKernels + kToeplitzKernelCount; ++k) {
    if (!runs(k->cubin, architecture) || k->dtype != dtype || !serves(*k, a)) continue;
    if (!forms.empty() && group(*k) < group(*forms[0])) forms.clear();
    if (forms.empty() || group(*k) == group(*forms[0])) forms.push_back(k);
  }
  // The most rows that leave enough pairs, else the fewest; the largest block that is filled, else the smallest.
  const auto rank = [&](const ToeplitzKernel& k) {
    const bool enough = pairs(a, k.rows) >= kFewPairs, full = filled(k, a);
    return std::make_tuple(!enough, enough ? -k.rows : k.rows, !full, full ? -k.block_m : k.block_m);
  };
  const auto best = std::min_element(forms.begin(), forms.end(), [&](auto* x, auto* y) { return rank(*x) < rank(*y); });
  return best == forms.end() ? nullptr : *best;
}

// Returns the programs per channel and column of tiles if each computes 2^log images.
int64_t toeplitz_programs(const ToeplitzKernel& k, const KernelArguments& a, int log) {
  return ceil_div(a.batch, int64_t{1} << log) * ceil_div(ceil_div(a.height, k.rows), k.block_m >> log);
}

// As toeplitz.log_images: a program's block_m rows are 2^log images of each of its row blocks.
int log_images(const ToeplitzKernel& k, const KernelArguments& a) {
  int best = 0;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (int log = 0; k.block_m >> log; ++log) {
    const int64_t programs = toeplitz_programs(k, a, log);
    if (programs <= least) best = log, least = programs;
  }
  return best;
}

// What the kernels' parameters point to: sizes are int32 there. Triton's two scratch pointers come last.
struct Parameters {
  KernelArguments a;
  const void* bias = a.bias ? a.bias : a.weight;  // a valid address even if it is not read
  int batch = static_cast<int>(a.batch), channels = static_cast<int>(a.channels);
  int height = static_cast<int>(a.height), width = static_cast<int>(a.width);
  int kernel_height = static_cast<int>(a.kernel_height), kernel_width = static_cast<int>(a.kernel_width);
  int has_bias = a.bias != nullptr;
  void *global_scratch = nullptr, *profile_scratch = nullptr;
};

}  // namespace

bool launch_taps(const Device& device, const KernelArguments& a, DataType dtype, bool channels_last, void* stream) {
  const TapsKernel* kernel = find_taps(device.architecture, dtype, channels_last);
  if (!kernel) return false;
  const int64_t pixels = a.height * a.width;  // the kernel indexes them in int32, by blocks
  if (pixels > kMaxElements - kernel->block_pixels) return false;
  if (a.channels * a.kernel_height * a.kernel_width >= kMaxElements) return false;
  const int64_t grid_x = a.batch * ceil_div(pixels, kernel->block_pixels);
  const int64_t grid_y = ceil_div(a.channels, kernel->block_channels);
  if (grid_x > kMaxGridX || grid_y > kMaxGridY) return false;

  Parameters p{a};  // in the order of depthwise_conv2d_kernel's run-time arguments
  void* parameters[] = {&p.a.input,      &p.a.weight,     &p.bias,          &p.a.output,     &p.channels,
                        &p.height,       &p.width,        &p.kernel_height, &p.kernel_width, &p.a.strides[0],
                        &p.a.strides[1], &p.a.strides[2], &p.a.strides[3],  &p.has_bias,     &p.a.activation,
                        &p.global_scratch, &p.profile_scratch};
  launch_cubin(device, kernel->cubin, static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y), stream, parameters);
  return true;
}

std::optional<TensorCorePlan> plan_tensor_cores(const Device& device, const KernelArguments& a, DataType dtype) {
  if (a.kernel_height * a.kernel_width < kToeplitzTaps) return std::nullopt;
  if (std::max(a.kernel_height, a.kernel_width) > kLargestSide) return std::nullopt;
  if (a.batch * a.channels * a.height * a.width >= kMaxElements || a.channels > kMaxGridY) return std::nullopt;
  TensorCorePlan plan{};
  plan.device = device;
  plan.whole_image = find_whole_image(device.architecture, a, dtype);
  if (plan.whole_image) return plan;
  plan.pack = find_pack(device.architecture, dtype);
  plan.toeplitz = find_toeplitz(device.architecture, a, dtype);
  if (!plan.pack || !plan.toeplitz) return std::nullopt;
  // toeplitz.choose_tile
  const int64_t columns = plan.toeplitz->columns, pad = a.kernel_width / 2;
  const int64_t offset = plan.toeplitz->flat ? 0 : 8 * ceil_div(pad, 8);
  plan.offset = static_cast<int>(offset);
  plan.window = static_cast<int>(plan.toeplitz->flat ? a.width : 16 * ceil_div(offset + columns + pad, 16));
  plan.planes = static_cast<int>(a.kernel_height + 2 * (plan.toeplitz->rows - 1));
  plan.packed_elements = a.channels * plan.planes * plan.window * columns;
  return plan;
}

// Parameters are in the order of the kernels' run-time arguments.
void launch_tensor_cores(const TensorCorePlan& plan, const KernelArguments& a, void* packed, void* stream) {
  Parameters p{a};
  if (plan.whole_image) {
    void* product[] = {&p.a.input,  &p.a.weight, &p.bias,         &p.a.output,       &p.batch,
                       &p.has_bias, &p.channels, &p.a.activation, &p.global_scratch, &p.profile_scratch};
    launch_cubin(plan.device, plan.whole_image->cubin,
                 static_cast<unsigned>(ceil_div(a.batch, plan.whole_image->block_n)), p.channels, stream, product);
    return;
  }
  const ToeplitzKernel& tile = *plan.toeplitz;
  int rows = tile.rows, columns = tile.columns, window = plan.window, offset = plan.offset, planes = plan.planes;
  int log = log_images(tile, a);
  const int64_t grid_x = toeplitz_programs(tile, a, log) * ceil_div(a.width, tile.columns);
  void* pack[] = {&p.a.weight, &packed,  &p.kernel_height, &p.kernel_width,   &offset,           &planes,
                  &rows,       &columns, &window,          &p.global_scratch, &p.profile_scratch};
  launch_cubin(plan.device, plan.pack->cubin, p.channels, static_cast<unsigned>(ceil_div(planes, kPackGroup)), stream,
               pack);
  std::vector<void*> product = {&p.a.input,  &packed,   &p.a.weight, &p.bias,          &p.a.output,     &p.batch,
                                &p.channels, &p.height, &p.width,    &p.kernel_height, &p.kernel_width, &offset,
                                &planes,     &log,      &p.has_bias, &window};
  if (tile.activation < 0) product.push_back(&p.a.activation);
  product.insert(product.end(), {&p.global_scratch, &p.profile_scratch});
  launch_cubin(plan.device, tile.cubin, static_cast<unsigned>(grid_x), p.channels, stream, product.data());
}

void warn_no_kernel() {
  static std::atomic_flag warned = ATOMIC_FLAG_INIT;
  if (!warned.test_and_set())
    std::fprintf(stderr, "widefield: no kernel is compiled for this GPU or these sizes; "
                         "PyTorch's convolution is used instead\n");
}

}  // namespace widefield
