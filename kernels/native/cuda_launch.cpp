#include "cuda_launch.h"

#include <dlfcn.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

namespace widefield {
namespace {

using CUresult = int;
constexpr int kComputeCapabilityMajor = 75, kComputeCapabilityMinor = 76;  // CUdevice_attribute
constexpr int kMaxDynamicSharedBytes = 8;                                  // CUfunction_attribute
constexpr unsigned kDefaultSharedBytes = 48 * 1024;

// The few functions of libcuda.so.1 that a launch needs, by their documented C signatures.
struct Driver {
  CUresult (*cuCtxGetCurrent)(void** context);
  CUresult (*cuCtxGetDevice)(int* device);
  CUresult (*cuDeviceGetAttribute)(int* value, int attribute, int device);
  CUresult (*cuModuleLoadData)(void** module, const void* image);
  CUresult (*cuModuleGetFunction)(void** function, void* module, const char* name);
  CUresult (*cuFuncSetAttribute)(void* function, int attribute, int value);
  CUresult (*cuLaunchKernel)(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                             unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream, void** parameters,
                             void** extra);
  CUresult (*cuGetErrorString)(CUresult error, const char** text);

  static const Driver& get() {
    static const Driver driver;
    return driver;
  }

  void check(CUresult result, const char* call) const {
    if (result == 0) return;
    const char* text = nullptr;
    cuGetErrorString(result, &text);
    throw std::runtime_error(std::string("widefield: ") + call + " failed: " + (text ? text : "unknown error"));
  }

 private:
  Driver() {
    void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
    if (!library) throw std::runtime_error("widefield: libcuda.so.1 was not found: is the NVIDIA driver installed?");
    find(library, "cuCtxGetCurrent", cuCtxGetCurrent);
    find(library, "cuCtxGetDevice", cuCtxGetDevice);
    find(library, "cuDeviceGetAttribute", cuDeviceGetAttribute);
    find(library, "cuModuleLoadData", cuModuleLoadData);
    find(library, "cuModuleGetFunction", cuModuleGetFunction);
    find(library, "cuFuncSetAttribute", cuFuncSetAttribute);
    find(library, "cuLaunchKernel", cuLaunchKernel);
    find(library, "cuGetErrorString", cuGetErrorString);
  }

  template <class Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) throw std::runtime_error(std::string("widefield: libcuda.so.1 has no ") + name);
  }
};

// The newest cubin that the device can run. Those of compute capability 8.x run on any later 8.y; from 9.0 on they are
// compiled for one architecture alone ("sm_90a").
const Cubin* find_cubin(int architecture, DataType dtype, bool channels_last) {
  const Cubin* best = nullptr;
  for (int i = 0; i < kCubinCount; ++i) {
    const Cubin& cubin = kCubins[i];
    const bool runs = cubin.architecture == architecture ||
                      (architecture / 10 == 8 && cubin.architecture / 10 == 8 && cubin.architecture < architecture);
    if (runs && cubin.dtype == dtype && cubin.channels_last == channels_last &&
        (!best || cubin.architecture > best->architecture))
      best = &cubin;
  }
  return best;
}

// Loaded once for each context: functions belong to the context that loaded their module.
void* load(const Driver& driver, void* context, const Cubin& cubin) {
  static std::mutex mutex;
  static std::map<std::pair<void*, const Cubin*>, void*> functions;
  const std::lock_guard<std::mutex> lock(mutex);
  void*& function = functions[{context, &cubin}];
  if (!function) {
    void* module = nullptr;
    void* loaded = nullptr;
    driver.check(driver.cuModuleLoadData(&module, cubin.image), "cuModuleLoadData");
    driver.check(driver.cuModuleGetFunction(&loaded, module, cubin.name), "cuModuleGetFunction");
    if (cubin.shared_bytes > kDefaultSharedBytes)
      driver.check(driver.cuFuncSetAttribute(loaded, kMaxDynamicSharedBytes, static_cast<int>(cubin.shared_bytes)),
                   "cuFuncSetAttribute");
    function = loaded;
  }
  return function;
}

}  // namespace

bool launch_depthwise_conv2d(const KernelArguments& a, DataType dtype, bool channels_last, void* stream) {
  const Driver& driver = Driver::get();
  void* context = nullptr;
  int device = 0, major = 0, minor = 0;
  driver.check(driver.cuCtxGetCurrent(&context), "cuCtxGetCurrent");
  driver.check(driver.cuCtxGetDevice(&device), "cuCtxGetDevice");
  driver.check(driver.cuDeviceGetAttribute(&major, kComputeCapabilityMajor, device), "cuDeviceGetAttribute");
  driver.check(driver.cuDeviceGetAttribute(&minor, kComputeCapabilityMinor, device), "cuDeviceGetAttribute");
  const Cubin* cubin = find_cubin(10 * major + minor, dtype, channels_last);
  if (!cubin) return false;

  const int64_t pixels = static_cast<int64_t>(a.height) * a.width;
  const int64_t grid_x = a.batch * ((pixels + cubin->block_pixels - 1) / cubin->block_pixels);
  const int64_t grid_y = (a.channels + cubin->block_channels - 1) / cubin->block_channels;
  if (grid_x > 0x7fffffff || grid_y > 65535) return false;  // beyond the hardware's grid

  // In the order of depthwise_conv2d_kernel's run-time arguments, then Triton's two scratch pointers.
  KernelArguments copy = a;
  if (!copy.bias) copy.bias = copy.weight;  // a valid address that is not read
  int has_bias = a.bias != nullptr;
  void *global_scratch = nullptr, *profile_scratch = nullptr;
  void* parameters[] = {&copy.input,        &copy.weight,       &copy.bias,       &copy.output,     &copy.channels,
                        &copy.height,       &copy.width,        &copy.kernel_height, &copy.kernel_width,
                        &copy.strides[0],   &copy.strides[1],   &copy.strides[2], &copy.strides[3], &has_bias,
                        &copy.activation,   &global_scratch,    &profile_scratch};
  void* function = load(driver, context, *cubin);
  driver.check(driver.cuLaunchKernel(function, static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y), 1,
                                     32 * cubin->warps, 1, 1, cubin->shared_bytes, stream, parameters, nullptr),
               "cuLaunchKernel");
  return true;
}

}  // namespace widefield
